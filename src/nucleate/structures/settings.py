"""Equivalent descriptions of one crystal: origins and axes that the space group leaves open.

A space group fixes the origin and the axes of a crystal only up to its normaliser (International
Tables for Crystallography, Vol. A, section 3.5): rock salt may put either ion at the origin.
Every such choice is a different token sequence of the same crystal. :func:`canonical_setting`
picks one of them, :func:`random_setting` draws one.

The normaliser is taken with the metric in its general form: all of the lattice's point
operations for tetragonal and higher systems; permutations of the axes for orthorhombic groups
that allow them (lengths move along); signs and the exchange of a and c for monoclinic ones; the
inversion for triclinic ones. In polar groups the origin also slides along the free directions.
Maps of negative determinant turn a chiral crystal into its mirror image, which has the same
energy; ``keep_handedness`` leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

from nucleate.structures.batch import WyckoffBatch, steps_of, wrapped
from nucleate.structures.symmetry import N_SPACE_GROUPS, TRANSLATION_UNIT, tables

CHUNK = 2048  # crystals described at once, which bounds memory
LENGTH_STEP = 1e-3  # Å; lengths are compared in these steps


@dataclass(frozen=True, eq=False)
class Normalizers:
    """Maps of each space group onto itself, one for each coset of the group.

    Attributes:
        first: (231,) int32; maps of group g are rows ``first[g - 1]`` to ``first[g]``, the
            identity first.
        rotation: (M, 3, 3) int8, P of x -> P x + p.
        translation: (M, 3) int8, p in 1/24.
        proper: (M,) bool, keeps the handedness of a chiral crystal: det P = 1, or the group
            itself holds a reflection, so that the coset has such a map.
        free_origin: (230, 3) bool, axes along which the origin may slide.
        letter: (M, 28) int8, letter that each letter becomes.
        transfer_first: (M,) int32, row of letter a's transfer.
        transfer_rotation, transfer_translation: (F, 3, 3) int8 and (F, 3) int8 in 1/24, from a
            point on the old letter's first operation to one on the new letter's.
    """

    first: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    proper: np.ndarray
    free_origin: np.ndarray
    letter: np.ndarray
    transfer_first: np.ndarray
    transfer_rotation: np.ndarray
    transfer_translation: np.ndarray

    def count(self, space_group: np.ndarray) -> np.ndarray:
        """Number of maps of each group; continuous origins are not counted."""
        group = np.asarray(space_group)
        return self.first[group] - self.first[group - 1]


@lru_cache(maxsize=1)
def normalizers() -> Normalizers:
    """The normalisers of the 230 groups, read once in a process; arrays are read-only."""
    with files("nucleate").joinpath("data/normalizers.npz").open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        arrays = {name: stored[name] for name in stored.files}
    proper = np.linalg.det(arrays["rotation"].astype(float)) > 0
    for group in range(1, N_SPACE_GROUPS + 1):
        rotations, _ = tables().general_operations(group)
        if (np.linalg.det(rotations.astype(float)) < 0).any():
            proper[arrays["first"][group - 1] : arrays["first"][group]] = True
    result = Normalizers(proper=proper, **arrays)
    for array in vars(result).values():
        array.setflags(write=False)
    return result


def random_setting(
    batch: WyckoffBatch, rng: np.random.Generator, *, keep_handedness: bool = False
) -> WyckoffBatch:
    """Draw one of the equivalent descriptions of each crystal, uniformly.

    Args:
        batch: B crystals; rows without a crystal (space group 0) stay as they are.
        rng: source of randomness.
        keep_handedness: never turn a chiral crystal into its mirror image.
    """
    parts = [batch[i : i + CHUNK] for i in range(0, len(batch), CHUNK)]
    return WyckoffBatch.concatenate(
        [_random(part, rng, keep_handedness) for part in parts] or [batch]
    )


def canonical_setting(batch: WyckoffBatch, *, keep_handedness: bool = False) -> WyckoffBatch:
    """The first of the equivalent descriptions of each crystal.

    First means: smallest sequence of letters, then of species (both in the order of letter and
    species), then of a, b, c in steps of 1e-3 Å, then of coordinates in steps of 1e-4 (in the
    order of letter, species, x, y, z). Free origins are set so that one site has coordinate 0
    there: of all sites of the rarest pair of letter and species, the one that gives the first
    description.

    Args:
        batch: B crystals; rows without a crystal (space group 0) stay as they are.
        keep_handedness: never turn a chiral crystal into its mirror image, so that
            enantiomers keep different descriptions.
    """
    parts = [batch[i : i + CHUNK] for i in range(0, len(batch), CHUNK)]
    return WyckoffBatch.concatenate([_canonical(p, keep_handedness) for p in parts] or [batch])


def _random(batch: WyckoffBatch, rng: np.random.Generator, proper_only: bool) -> WyckoffBatch:
    norm = normalizers()
    rows = np.flatnonzero(batch.space_group > 0)
    crystal, maps = _all_maps(batch.space_group[rows], proper_only)
    ends = np.searchsorted(crystal, np.arange(len(rows) + 1))
    pick = ends[:-1] + np.floor(rng.random(len(rows)) * np.diff(ends)).astype(np.int64)
    shift = rng.random((len(rows), 3))
    shift *= norm.free_origin[batch.space_group[rows].astype(np.int64) - 1]
    return _written(batch, rows, _describe(batch, rows, maps[pick], shift))


def _canonical(batch: WyckoffBatch, proper_only: bool) -> WyckoffBatch:
    rows = np.flatnonzero(batch.space_group > 0)
    if len(rows) == 0:
        return batch
    crystal, maps = _all_maps(batch.space_group[rows], proper_only)
    kept = _first_rows(crystal, _discrete_keys(batch, rows[crystal], maps), all_ties=True)
    crystal, maps = crystal[kept], maps[kept]
    crystal, maps, shift = _anchored(batch, rows, crystal, maps)
    sites = _describe(batch, rows[crystal], maps, shift)
    key = np.full((len(maps), batch.wyckoff.shape[1]), -1, np.int64)
    order = np.lexsort((sites.key, sites.species, sites.letter, sites.description))
    key[sites.description[order], sites.slots(order)] = sites.key[order]
    best = _first_rows(crystal, key)
    chosen = _describe(batch, rows, maps[best], shift[best])
    return _written(batch, rows, chosen)


def _all_maps(space_group: np.ndarray, proper_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Index of the crystal and row of the map, for every map of every crystal."""
    norm = normalizers()
    group = space_group.astype(np.int64)
    count = norm.count(group)
    crystal = np.repeat(np.arange(len(group)), count)
    start = np.cumsum(count) - count
    maps = norm.first[group - 1][crystal] + np.arange(len(crystal)) - start[crystal]
    if proper_only:
        kept = norm.proper[maps]
        crystal, maps = crystal[kept], maps[kept]
    return crystal, maps


def _lengths(lattice: np.ndarray, maps: np.ndarray, space_group: np.ndarray) -> np.ndarray:
    """(n, 3) lengths after the map; only axes below the tetragonal system change places."""
    source = np.abs(normalizers().rotation[maps]).argmax(axis=2)
    source = np.where(space_group[:, None] <= 74, source, np.arange(3))
    return np.take_along_axis(lattice[:, :3], source, axis=1)


def _discrete_keys(batch: WyckoffBatch, rows: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(n, 2 S + 3) int64: letters, species and lengths of crystals ``rows`` after ``maps``."""
    letter = np.take_along_axis(normalizers().letter[maps], batch.wyckoff[rows].astype(int), 1)
    pair = letter.astype(np.int64) * 128 + batch.species[rows]
    pair[letter == 0] = 1 << 20
    pair.sort(axis=1)
    lengths = _lengths(batch.lattice[rows], maps, batch.space_group[rows])
    return np.concatenate(
        [pair // 128, pair % 128, np.round(lengths / LENGTH_STEP).astype(np.int64)], axis=1
    )


def _first_rows(crystal: np.ndarray, keys: np.ndarray, all_ties: bool = False) -> np.ndarray:
    """Indices of the lexicographically smallest row of ``keys`` of each crystal, in order."""
    order = np.lexsort((*keys.T[::-1], crystal))
    first = order[np.unique(crystal[order], return_index=True)[1]]
    if not all_ties:
        return first
    return np.flatnonzero((keys == keys[first][np.searchsorted(crystal[first], crystal)]).all(1))


def _anchored(
    batch: WyckoffBatch, rows: np.ndarray, crystal: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeat each description in a polar group for every site that may fix the free origin.

    Returns:
        Crystal (n,), map (n,), and the shift of the origin (n, 3) that precedes the map.
    """
    norm = normalizers()
    free = norm.free_origin[batch.space_group[rows[crystal]].astype(np.int64) - 1]
    polar = free.any(axis=1)
    letter = np.take_along_axis(
        norm.letter[maps], batch.wyckoff[rows[crystal]].astype(np.int64), axis=1
    )
    pair = letter.astype(np.int64) * 128 + batch.species[rows[crystal]]
    count = (pair[:, :, None] == pair[:, None, :]).sum(2)
    rank = np.where(letter > 0, count << 20 | pair, 1 << 40)
    anchor = rank == rank.min(axis=1, keepdims=True)
    anchor[~polar] = False
    anchor[~polar, 0] = True
    which, site = np.nonzero(anchor)
    shift = -batch.frac_coords[rows[crystal[which]], site].astype(np.float64) * free[which]
    return crystal[which], maps[which], shift


@dataclass(frozen=True, eq=False)
class _Sites:
    """Sites of several descriptions: which description, letter, species, coordinates, key."""

    description: np.ndarray
    letter: np.ndarray
    species: np.ndarray
    frac_coords: np.ndarray
    key: np.ndarray
    lengths: np.ndarray  # (number of descriptions, 3)

    def slots(self, order: np.ndarray) -> np.ndarray:
        """Place of each site in its description when sites are taken in ``order``."""
        sorted_descriptions = self.description[order]
        return np.arange(len(order)) - np.searchsorted(sorted_descriptions, sorted_descriptions)


def _describe(batch: WyckoffBatch, rows: np.ndarray, maps: np.ndarray, shift: np.ndarray) -> _Sites:
    """Sites of crystals ``rows`` after a shift of the origin and a map.

    The representative of each orbit is chosen as in encoding: smallest x, then y, then z.
    """
    norm, table = normalizers(), tables()
    description, slot = np.nonzero(batch.wyckoff[rows] > 0)
    row, m = rows[description], maps[description]
    old = batch.wyckoff[row, slot].astype(np.int64)
    transfer = norm.transfer_first[m] + old - 1
    x = batch.frac_coords[row, slot].astype(np.float64) + shift[description]
    x = np.einsum("nij,nj->ni", norm.transfer_rotation[transfer].astype(float), x)
    x += norm.transfer_translation[transfer] / TRANSLATION_UNIT

    letter = norm.letter[m, old].astype(np.int64)
    group = batch.space_group[row].astype(np.int64) - 1
    count = table.n_on_first[group, letter].astype(np.int64)
    start = np.cumsum(count) - count
    site = np.repeat(np.arange(len(row)), count)
    place = np.arange(len(site)) - start[site] + table.first_on_first[group, letter][site]
    operation = table.on_first[place]
    image = np.einsum("nij,nj->ni", table.rotation[operation].astype(float), x[site])
    image = wrapped(image + table.translation[operation] / TRANSLATION_UNIT)
    key = steps_of(image)
    smallest = np.minimum.reduceat(key, start) if len(start) else key
    hit = np.flatnonzero(key == smallest[site])
    kept = hit[np.unique(site[hit], return_index=True)[1]]
    return _Sites(
        description=description,
        letter=letter,
        species=batch.species[row, slot],
        frac_coords=image[kept].astype(np.float32),
        key=key[kept],
        lengths=_lengths(batch.lattice[rows], maps, batch.space_group[rows]),
    )


def _written(batch: WyckoffBatch, rows: np.ndarray, sites: _Sites) -> WyckoffBatch:
    """A copy of the batch in which crystal ``rows[i]`` has description ``i``."""
    out = WyckoffBatch.empty(len(batch), batch.wyckoff.shape[1])
    order = np.lexsort((*sites.frac_coords.T[::-1], sites.letter, sites.description))
    row, slot = rows[sites.description[order]], sites.slots(order)
    out.space_group[:] = batch.space_group
    out.wyckoff[row, slot] = sites.letter[order]
    out.species[row, slot] = sites.species[order]
    out.frac_coords[row, slot] = sites.frac_coords[order]
    out.lattice[:] = batch.lattice
    out.lattice[rows, :3] = sites.lengths
    return out
