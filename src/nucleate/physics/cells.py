"""Crystals as arrays, and their bonds: every pair of atoms within a cutoff, once.

Lattice vectors are rows, Å. Neighbours are found by one matrix product over atom pairs and lattice
translations, which for cells of a few atoms is several times faster than a cell list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nucleate.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_NEIGHBOURS = 1500  # mean neighbours an atom; ten times the density of diamond
MAX_IMAGES = 200_000
MIN_DISTANCE = 0.01  # Å


class Cell(NamedTuple):
    """A crystal as three arrays: what travels between processes.

    Attributes:
        lattice: (3, 3) float64, rows a, b, c, Å.
        numbers: (N,) int64 atomic numbers.
        frac_coords: (N, 3) float64.
    """

    lattice: np.ndarray
    numbers: np.ndarray
    frac_coords: np.ndarray


class Bonds(NamedTuple):
    """The bonds of one crystal, each once.

    Attributes:
        first: (E,) int64 atom index.
        second: (E,) int64 atom index.
        vector: (E, 3) float64, from the first atom to the second one's image, Å.
        length: (E,) float64, Å.
        n_short: bonds ``[:n_short]`` are those up to the short cutoff.
    """

    first: np.ndarray
    second: np.ndarray
    vector: np.ndarray
    length: np.ndarray
    n_short: int


def as_cell(structure: Structure | Cell) -> Cell:
    """The arrays of a structure.

    Raises:
        InputError: if a site is disordered, a number isn't finite, or there are no atoms.
    """
    if not isinstance(structure, Cell):
        if not structure.is_ordered:
            raise InputError(
                f"{structure.formula} has partially occupied sites",
                "a potential needs one element on each site",
                "order the structure first",
            )
        structure = Cell(
            np.array(structure.lattice.matrix, dtype=np.float64),
            np.array([site.specie.Z for site in structure], dtype=np.int64),
            np.array(structure.frac_coords, dtype=np.float64).reshape(-1, 3),
        )
    if not len(structure.numbers):
        raise InputError("the structure has no atoms")
    if not (np.isfinite(structure.lattice).all() and np.isfinite(structure.frac_coords).all()):
        raise InputError("the structure has a coordinate or lattice vector that is not finite")
    return structure


def as_structure(cell: Cell) -> Structure:
    """The pymatgen structure of a cell, atoms inside it."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(cell.lattice), cell.numbers.tolist(), cell.frac_coords % 1.0)


def for_potential(cells: Sequence[Cell], potential: object) -> list[Any]:
    """The cells themselves if the potential says that it ``accepts_cells``, else structures."""
    if getattr(potential, "accepts_cells", False):
        return list(cells)
    return [as_structure(cell) for cell in cells]


@lru_cache(maxsize=256)
def _half_images(n1: int, n2: int, n3: int) -> np.ndarray:
    """(M, 3) float64 lattice translations in the box; the first (M - 1) / 2 negate the last."""
    grid = np.indices((2 * n1 + 1, 2 * n2 + 1, 2 * n3 + 1)).reshape(3, -1).T
    images = (grid - np.array([n1, n2, n3])).astype(np.float64)
    images.setflags(write=False)
    return images


@lru_cache(maxsize=64)
def _atom_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices i < j of all pairs of n atoms, then i = j."""
    i, j = np.triu_indices(n, 1)
    own = np.arange(n)
    return np.concatenate([i, own]), np.concatenate([j, own])


def find_bonds(cell: Cell, cutoff: float, short_cutoff: float) -> Bonds:
    """All pairs of atoms up to the cutoff, each once, those up to the short cutoff first.

    Args:
        cell: the crystal.
        cutoff: Å.
        short_cutoff: Å.

    Raises:
        InputError: if the cell is flat or absurdly dense, atoms coincide, or an atom has no
            neighbour within the cutoff.
    """
    lattice, n_atoms = cell.lattice, len(cell.numbers)
    volume = abs(float(np.linalg.det(lattice)))
    if not volume > 1e-3 or n_atoms / volume * 4.19 * cutoff**3 > MAX_NEIGHBOURS:
        raise InputError(f"{volume:.3g} Å³ is no volume for {n_atoms} atoms")
    inverse_spacing = np.sqrt((np.linalg.inv(lattice) ** 2).sum(0))  # (3,) of lattice planes, 1/Å
    wrapped = cell.frac_coords - np.floor(cell.frac_coords)
    first, second = _atom_pairs(n_atoms)
    difference = wrapped[second] - wrapped[first]
    reach = cutoff * inverse_spacing + np.abs(difference).max(0)
    if np.prod(2 * reach + 1) > MAX_IMAGES:
        raise InputError("the cell is so skewed or flat that its neighbours can't be listed")
    images = _half_images(*(int(r) for r in reach))
    n_distinct = n_atoms * (n_atoms - 1) // 2
    delta, shift = difference @ lattice, images @ lattice
    delta2, shift2 = (delta**2).sum(1), (shift**2).sum(1)
    limit = cutoff**2
    squared = delta[:n_distinct] @ (2.0 * shift.T)
    squared += shift2
    squared += delta2[:n_distinct, None]
    pair, image = np.divmod(np.flatnonzero(squared < limit + 1e-6), len(images))
    # An atom and its own images: one of each pair of opposite translations.
    own = np.flatnonzero(shift2[len(images) // 2 + 1 :] < limit) + len(images) // 2 + 1
    pair = np.concatenate([pair, np.repeat(np.arange(n_distinct, len(first)), len(own))])
    image = np.concatenate([image, np.tile(own, n_atoms)])
    vector = delta[pair] + shift[image]
    length = np.sqrt((vector**2).sum(1))
    inside = length < cutoff
    short = length < short_cutoff
    order = np.concatenate([np.flatnonzero(short), np.flatnonzero(inside & ~short)])
    if len(order) and length[order].min() < MIN_DISTANCE:
        raise InputError(f"two atoms are less than {MIN_DISTANCE} Å apart")
    pair = pair[order]
    bonds = Bonds(first[pair], second[pair], vector[order], length[order], int(short.sum()))
    lonely = n_atoms - len(np.unique(np.concatenate([bonds.first, bonds.second])))
    if lonely:
        raise InputError(f"{lonely} atoms have no neighbour within {cutoff:g} Å")
    return bonds
