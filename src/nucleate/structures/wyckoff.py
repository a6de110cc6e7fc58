"""Crystals as Wyckoff tokens: space group, and for each orbit its letter, species and position.

A crystal is written as its space-group number, the six parameters of the conventional cell, and
one site for each symmetry-distinct orbit of atoms. A site holds the letter of the Wyckoff
position, the atomic number, and the fractional coordinates of one atom of the orbit that lies on
the position's first operation. Sites are in ascending order of letter, then of x, y, z.

An orbit offers several atoms on the first operation; the one kept is the smallest in x, then y,
then z, where coordinates within 1e-4 of one another count as equal, and those within 1e-4 below 1
are 0. Space groups are found by moyo (K. Shinohara, https://github.com/spglib/moyo).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nucleate.structures.batch import WyckoffBatch, steps_of, wrapped
from nucleate.structures.symmetry import (
    N_SPACE_GROUPS,
    TRANSLATION_UNIT,
    lattice_matrix,
    lattice_parameters,
    symmetrise_lattice,
    tables,
)

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "Cell",
    "WyckoffBatch",
    "decode",
    "decode_arrays",
    "encode",
    "encode_cells",
    "undecodable",
]

ON_POSITION = 1e-3  # fractional; distance from a position at which an atom still lies on it
MIN_TRANSLATION = 0.5  # Å; no crystal repeats itself after less
MAX_ATOMIC_NUMBER = 118

Cell = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row vectors (3, 3) in Å, atomic numbers (N,), fractional coordinates (N, 3)."""


def encode(
    structures: Sequence[Structure], symprec: float = 0.01
) -> tuple[WyckoffBatch, list[str]]:
    """Tokens of structures.

    Args:
        structures: ordered periodic crystals.
        symprec: tolerance of the symmetry search, Å.

    Returns:
        The batch, one row for each structure, and one reason for each: empty where the
        structure was encoded, else why it wasn't (its row then has space group 0).
    """
    cells: list[Cell | str] = []
    for structure in structures:
        if not structure.is_ordered:
            cells.append("disordered: a site has partial or several occupants")
            continue
        try:
            numbers = np.array([site.specie.Z for site in structure], dtype=np.int64)
        except AttributeError:
            cells.append("a site holds no chemical element")
            continue
        cells.append((structure.lattice.matrix, numbers, structure.frac_coords))
    return encode_cells(cells, symprec)


def encode_cells(
    cells: Sequence[Cell | str], symprec: float = 0.01
) -> tuple[WyckoffBatch, list[str]]:
    """Tokens of crystals given as arrays; see :func:`encode`.

    Args:
        cells: (row vectors in Å, atomic numbers, fractional coordinates) of each crystal, or a
            reason why there is none.
        symprec: tolerance of the symmetry search, Å.
    """
    reasons = ["" for _ in cells]
    found: list[_Standard] = []
    for row, cell in enumerate(cells):
        result = cell if isinstance(cell, str) else _standardise(row, cell, symprec)
        if isinstance(result, str):
            reasons[row] = result
        else:
            found.append(result)
    batch = _tokens(found, len(cells), reasons)
    return batch, reasons


@dataclass(frozen=True)
class _Standard:
    """A crystal in the standard setting: conventional cell, atoms labelled by orbit."""

    row: int
    space_group: int
    lattice: np.ndarray  # (3, 3)
    frac_coords: np.ndarray  # (n, 3)
    numbers: np.ndarray  # (n,)
    orbits: np.ndarray  # (n,) 0-based labels without gaps


def _standardise(row: int, cell: Cell, symprec: float) -> _Standard | str:
    """Find the space group and go to its standard setting, or say why that failed."""
    from moyopy import Cell as MoyoCell
    from moyopy import MoyoDataset, Setting

    lattice, numbers, frac_coords = (np.asarray(part) for part in cell)
    reason = _cell_defect(lattice, numbers, frac_coords, symprec)
    if reason:
        return reason
    try:
        found = MoyoDataset(
            MoyoCell(lattice.tolist(), frac_coords.tolist(), numbers.tolist()),
            symprec=symprec,
            setting=Setting.standard(),
        )
    except ValueError as error:
        return f"no space group found at symprec {symprec} Å: {error}"
    standard, primitive = found.std_cell, found.prim_std_cell
    orbit_of_primitive = np.empty(len(primitive.numbers), dtype=np.int64)
    orbit_of_primitive[found.mapping_std_prim] = found.orbits
    images = len(standard.numbers) // len(primitive.numbers)
    return _Standard(
        row=row,
        space_group=found.number,
        lattice=np.array(standard.basis),
        frac_coords=np.array(standard.positions),
        numbers=np.array(standard.numbers),
        orbits=np.repeat(np.unique(orbit_of_primitive, return_inverse=True)[1], images),
    )


def _cell_defect(
    lattice: np.ndarray, numbers: np.ndarray, frac_coords: np.ndarray, symprec: float
) -> str:
    """Why the arrays are no crystal; empty if they are one."""
    if len(numbers) == 0:
        return "no atoms"
    if lattice.shape != (3, 3) or frac_coords.shape != (len(numbers), 3):
        return f"arrays of shape {lattice.shape}, {numbers.shape}, {frac_coords.shape}"
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        return "a lattice vector or coordinate is not finite"
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        return f"atomic numbers outside 1..{MAX_ATOMIC_NUMBER}"
    if abs(np.linalg.det(lattice)) < 1e-3:
        return "the cell has no volume"
    shortest = _shortest_translation(lattice)
    if shortest < MIN_TRANSLATION:
        return f"a lattice translation of {shortest:.3g} Å, less than {MIN_TRANSLATION} Å"
    apart = frac_coords[:, None] - frac_coords[None]
    distance = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=2)
    first, second = np.nonzero(np.triu(distance < symprec, k=1))
    if len(first):
        i, j = int(first[0]), int(second[0])
        return f"atoms {i} and {j} are {distance[i, j]:.3g} Å apart, within symprec {symprec} Å"
    return ""


def _shortest_translation(lattice: np.ndarray) -> float:
    """Length in Å of the shortest lattice vector, or a lower bound on it of 1 Å or more."""
    from moyopy import minkowski_reduce

    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    if heights.min() >= 1.0:
        return float(heights.min())
    reduced, _ = minkowski_reduce(lattice.tolist())
    return float(np.linalg.norm(reduced, axis=1).min())


def _tokens(found: Sequence[_Standard], n_rows: int, reasons: list[str]) -> WyckoffBatch:
    """Letters and representatives of all orbits of all crystals at once."""
    if not found:
        return WyckoffBatch.empty(n_rows, 0)
    sizes = np.array([len(c.numbers) for c in found])
    n_orbits = np.array([c.orbits.max() + 1 for c in found])
    orbit_start = np.concatenate([[0], np.cumsum(n_orbits)])
    crystal_of_orbit = np.repeat(np.arange(len(found)), n_orbits)
    groups = np.array([c.space_group for c in found])
    orbit = np.concatenate([c.orbits for c in found]) + np.repeat(orbit_start[:-1], sizes)
    coords = np.concatenate([c.frac_coords for c in found])
    species = np.zeros(orbit_start[-1], np.int64)
    species[orbit] = np.concatenate([c.numbers for c in found])

    letter, position = _letters(groups[crystal_of_orbit], orbit, coords)
    lost = np.unique(crystal_of_orbit[letter == 0])
    for k in lost.tolist():
        reasons[found[k].row] = (
            f"an orbit of the refined cell lies on no Wyckoff position of space group {groups[k]}"
        )
    batch = WyckoffBatch.empty(n_rows, int(n_orbits.max()))
    order = np.lexsort((*position.T[::-1], letter, crystal_of_orbit))
    order = order[~np.isin(crystal_of_orbit[order], lost)]
    crystal = crystal_of_orbit[order]
    rows = np.array([c.row for c in found])
    slot = np.arange(len(order)) - np.searchsorted(crystal, crystal)
    batch.wyckoff[rows[crystal], slot] = letter[order]
    batch.species[rows[crystal], slot] = species[order]
    batch.frac_coords[rows[crystal], slot] = position[order]
    good = np.setdiff1d(np.arange(len(found)), lost)
    cells = lattice_parameters(np.stack([crystal.lattice for crystal in found]))
    batch.space_group[rows[good]] = groups[good]
    batch.lattice[rows[good]] = symmetrise_lattice(groups, cells)[good]
    return batch


def _letters(
    group: np.ndarray, orbit: np.ndarray, coords: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Letter and representative of each orbit.

    Args:
        group: (O,) space group of each orbit.
        orbit: (n,) orbit of each atom.
        coords: (n, 3) fractional coordinates, conventional cell.

    Returns:
        Letters (O,), 0 where none fits, and representatives (O, 3) float32.
    """
    table = tables()
    size = np.bincount(orbit, minlength=len(group))
    fits = table.multiplicity[group - 1] == size[:, None]
    atom, letter = np.nonzero(fits[orbit])
    g = group[orbit[atom]] - 1
    first = table.first[g, letter]
    image = np.einsum("nij,nj->ni", table.rotation[first].astype(float), coords[atom])
    image += table.translation[first] / TRANSLATION_UNIT
    miss = image - coords[atom]
    miss = np.abs(miss - np.round(miss)).max(axis=1)

    chosen = np.zeros(len(group), np.int64)
    best = np.lexsort((miss, orbit[atom]))
    best = best[np.unique(orbit[atom][best], return_index=True)[1]]
    best = best[miss[best] < ON_POSITION]
    chosen[orbit[atom[best]]] = letter[best]

    candidate = np.flatnonzero((miss < ON_POSITION) & (letter == chosen[orbit[atom]]))
    inside = wrapped(image[candidate])
    smallest = np.lexsort((steps_of(inside), orbit[atom[candidate]]))
    of_orbit = orbit[atom[candidate]][smallest]
    kept = smallest[np.unique(of_orbit, return_index=True)[1]]
    position = np.zeros((len(group), 3), np.float32)
    position[orbit[atom[candidate[kept]]]] = inside[kept]
    return chosen, position


def decode(batch: WyckoffBatch, primitive: bool = True) -> tuple[list[Structure | None], list[str]]:
    """Structures of tokens.

    Args:
        batch: B crystals.
        primitive: reduce centred cells to the primitive cell, which is cheaper to evaluate.

    Returns:
        B structures, None where the tokens are no crystal, and B reasons, empty where decoded.
    """
    from pymatgen.core import Lattice, Structure

    cells, reasons = decode_arrays(batch, primitive)
    structures = [
        None
        if cell is None
        else Structure(Lattice(cell[0]), cell[1].tolist(), cell[2], coords_are_cartesian=False)
        for cell in cells
    ]
    return structures, reasons


def decode_arrays(
    batch: WyckoffBatch, primitive: bool = True
) -> tuple[list[Cell | None], list[str]]:
    """Cells of tokens as arrays; see :func:`decode`.

    Returns:
        For each crystal (row vectors (3, 3) in Å, atomic numbers (N,) int64, fractional
        coordinates (N, 3) float64 in [0, 1)) or None, and a reason.
    """
    reasons = undecodable(batch)
    good = np.array([not reason for reason in reasons], dtype=bool)
    table = tables()
    group = np.where(good, batch.space_group, 1).astype(np.int64) - 1
    cell = np.where(good[:, None], batch.lattice, 1.0).astype(np.float64)
    lattice = lattice_matrix(symmetrise_lattice(group + 1, cell))
    per_cell = table.centring_order[group].astype(np.int64) if primitive else np.ones_like(group)

    row, slot = np.nonzero((batch.wyckoff > 0) & good[:, None])
    g, letter = group[row], batch.wyckoff[row, slot].astype(np.int64)
    count = table.multiplicity[g, letter] // per_cell[row]
    offset = np.concatenate([[0], np.cumsum(count)])
    site = np.repeat(np.arange(len(row)), count)
    operation = table.first[g, letter][site] + np.arange(offset[-1]) - offset[site]
    start = batch.frac_coords[row, slot].astype(np.float64)[site]
    coords = np.einsum("nij,nj->ni", table.rotation[operation].astype(float), start)
    coords += table.translation[operation] / TRANSLATION_UNIT
    if primitive:
        inverse = np.linalg.inv(table.primitive_basis)[group]
        coords = np.einsum("ni,nij->nj", coords, inverse[row[site]])
        lattice = table.primitive_basis[group] @ lattice
    coords -= np.floor(coords)
    coords[coords > 1.0 - 1e-12] = 0.0
    numbers = batch.species[row, slot].astype(np.int64)[site]

    ends = np.searchsorted(row[site], np.arange(len(batch) + 1))
    cells: list[Cell | None] = [
        (lattice[i], numbers[ends[i] : ends[i + 1]], coords[ends[i] : ends[i + 1]])
        if good[i]
        else None
        for i in range(len(batch))
    ]
    return cells, reasons


def undecodable(batch: WyckoffBatch) -> list[str]:
    """Why each row holds no crystal; empty where it holds one.

    A row is refused for a space group or letter that doesn't exist, a site without an element,
    two orbits on one position without a free coordinate, or a cell without volume.
    """
    table = tables()
    b = len(batch)
    group = batch.space_group.astype(np.int64)
    known = (group >= 1) & (group <= N_SPACE_GROUPS)
    g = np.where(known, group, 1) - 1
    site = batch.wyckoff != 0
    letter = batch.wyckoff.astype(np.int64)
    exists = (letter >= 0) & (letter <= table.n_letters[g][:, None])
    safe = np.where(exists, letter, 0)
    fixed = site & (table.dof[g[:, None], safe] == 0)
    order = np.sort(np.where(fixed, letter, -np.arange(1, letter.shape[1] + 1)), axis=1)
    twice = (order[:, 1:] == order[:, :-1]).any(axis=1)
    element = (batch.species >= 1) & (batch.species <= MAX_ATOMIC_NUMBER)
    cell = symmetrise_lattice(g + 1, batch.lattice.astype(np.float64))
    in_range = ((cell > 0) & np.isfinite(cell)).all(1) & (cell[:, 3:] < 180).all(1)
    matrix = lattice_matrix(np.where(in_range[:, None], cell, 1.0))
    volume = np.linalg.det(np.nan_to_num(matrix))
    tests = (
        (~known, "space group {g} is outside 1..230"),
        (~site.any(axis=1), "no site"),
        (~exists.all(axis=1), "a letter that space group {g} doesn't have"),
        (twice, "two orbits on one position without a free coordinate"),
        ((site & ~element).any(axis=1), "a site without a chemical element"),
        (~np.isfinite(batch.frac_coords).all(axis=(1, 2)), "a coordinate is not finite"),
        (~in_range, "a length or angle out of range"),
        (in_range & ~(volume > 1e-3), "no cell has these angles, or it has no volume"),
    )
    reasons = [""] * b
    for failed, text in tests:
        for i in np.flatnonzero(failed).tolist():
            reasons[i] = reasons[i] or text.format(g=int(group[i]))
    return reasons
