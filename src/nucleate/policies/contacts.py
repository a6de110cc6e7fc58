"""The shortest contacts of crystals whose scale is still open.

What fixes the size of a cell is which atoms touch. With the shape of the cell and all sites
drawn, every interatomic distance is known up to one factor; the tightest contacts, measured in
sums of covalent radii, say what that factor must be. They are invariant under the choice of
origin, setting and representative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nucleate.policies import lattice
from nucleate.policies.element_features import covalent_radii_angstrom
from nucleate.structures import symmetry
from nucleate.structures.wyckoff import WyckoffBatch

N_CONTACTS = 8
CONTACT_FEATURES = 3

_IMAGES = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(27, 3)
_CHUNK_DISTANCES = 4_000_000
_TIGHT_RANGE = (-1.0, 2.0)


@dataclass(frozen=True)
class Contacts:
    """Tightest pairs of sites of B crystals, tightest first.

    Attributes:
        species: (B, N_CONTACTS, 2) atomic numbers, 0 where there are fewer pairs.
        features: (B, N_CONTACTS, CONTACT_FEATURES) float32: logarithm of distance over sum of
            radii, relative to the tightest; logarithm of the sum of radii (Å); 1 for a site
            with its own images.
        tight: (B,) float32, the value of ``lattice.SCALE`` at which the tightest contact equals
            the sum of the covalent radii.
    """

    species: np.ndarray
    features: np.ndarray
    tight: np.ndarray


def find_contacts(batch: WyckoffBatch, parameters: np.ndarray) -> Contacts:
    """Contacts of crystals, whatever their scale.

    Args:
        batch: B crystals; their lattices are ignored.
        parameters: (B, 6) of ``policies.lattice``; the scale is ignored.
    """
    n = len(batch)
    result = Contacts(
        np.zeros((n, N_CONTACTS, 2), dtype=np.int64),
        np.zeros((n, N_CONTACTS, CONTACT_FEATURES), dtype=np.float32),
        np.zeros(n, dtype=np.float32),
    )
    unscaled = np.array(parameters, dtype=np.float64)
    unscaled[:, lattice.SCALE] = 0.0
    cells = symmetry.lattice_matrix(lattice.to_lattice(unscaled, batch.n_atoms, batch.space_group))
    work = np.cumsum(batch.n_sites * batch.n_atoms * 27)
    start = 0
    while start < n:
        done = work[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(work, done + _CHUNK_DISTANCES)))
        _fill(result, slice(start, stop), batch[slice(start, stop)], cells[start:stop])
        start = stop
    return result


def _fill(result: Contacts, rows: slice, batch: WyckoffBatch, cells: np.ndarray) -> None:
    """Contacts of one chunk."""
    tables = symmetry.tables()
    crystal, site = np.nonzero(batch.wyckoff)
    group, letter = batch.space_group[crystal].astype(int), batch.wyckoff[crystal, site].astype(int)
    representative = batch.frac_coords[crystal, site].astype(np.float64)
    species = batch.species[crystal, site].astype(np.int64)
    count = tables.multiplicity[group - 1, letter].astype(int)
    # every atom of every orbit
    owner = np.repeat(np.arange(len(crystal)), count)
    image = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    operation = tables.first[group - 1, letter][owner] + image
    atoms = (
        np.einsum("nij,nj->ni", tables.rotation[operation], representative[owner])
        + tables.translation[operation] / symmetry.TRANSLATION_UNIT
    )
    # every site against every atom of itself and of the sites after it
    n_atoms = np.bincount(crystal, weights=count, minlength=len(batch)).astype(int)
    first_atom = np.cumsum(n_atoms) - n_atoms
    pairs = n_atoms[crystal]
    source = np.repeat(np.arange(len(crystal)), pairs)
    offset = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    target = first_atom[crystal][source] + offset
    once = owner[target] >= source  # each pair of sites
    source, target = source[once], target[once]
    delta = atoms[target] - representative[source]
    delta -= np.round(delta)
    vectors = (delta[:, None, :] + _IMAGES) @ cells[crystal[source]]
    squared = np.einsum("pkd,pkd->pk", vectors, vectors)
    itself = (owner[target] == source) & (image[target] == 0)
    squared[itself, 13] = np.inf
    distance = np.sqrt(np.clip(squared.min(1), 1e-4, None))
    # shortest of each pair of sites; atoms of an orbit are adjacent
    target_site = owner[target]
    boundary = np.flatnonzero(
        np.r_[True, (source[1:] != source[:-1]) | (target_site[1:] != target_site[:-1])]
    )
    shortest = np.minimum.reduceat(distance, boundary)
    one, two = source[boundary], target_site[boundary]
    radii = covalent_radii_angstrom()
    radius_sum = radii[species[one]] + radii[species[two]]
    ratio = np.log(shortest / radius_sum)
    order = np.lexsort((ratio, crystal[one]))
    one, two, ratio, radius_sum = one[order], two[order], ratio[order], radius_sum[order]
    index = crystal[one]
    first = np.searchsorted(index, np.arange(len(batch)))
    rank = np.arange(len(index)) - first[index]
    kept = rank < N_CONTACTS
    row, column = index[kept] + rows.start, rank[kept]
    tightest = ratio[first]
    result.species[row, column, 0] = species[one[kept]]
    result.species[row, column, 1] = species[two[kept]]
    relative = ratio[kept] - tightest[index[kept]]
    result.features[row, column, 0] = np.clip(relative, 0, 3)
    result.features[row, column, 1] = np.log(radius_sum[kept])
    result.features[row, column, 2] = one[kept] == two[kept]
    result.tight[rows] = np.clip(-tightest, *_TIGHT_RANGE)
