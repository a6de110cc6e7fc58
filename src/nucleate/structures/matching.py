"""The verdict "same crystal" on two cells, equal to pymatgen's StructureMatcher with defaults.

``StructureMatcher().fit(stored, new)`` (S. P. Ong et al., Comput. Mater. Sci. 68 (2013) 314;
ltol 0.2, stol 0.3, angle_tol 5 degrees, primitive cells, scaled to equal volume, sites compared by
element) spends most of its time copying ``Structure`` objects and reducing the same crystals
again. Here a crystal is reduced once, by pymatgen's own reduction, and kept as arrays, and the
search over lattice mappings and translations runs on those with pymatgen's own routines, so that
the verdict is the same.

Two facts about the definition. After reduction to primitive cells, crystals with unequal numbers
of sites never match. And ``fit`` is not symmetric for pairs close to a tolerance, since the
tolerances on lengths are relative to the second crystal: the one stored earlier is always first,
the new one second, as in ``StructureMatcher.group_structures``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import gcd, isclose, pi
from typing import TYPE_CHECKING

import numpy as np

from nucleate.structures.parsing import Cell, to_structure
from nucleate.structures.validity import Limits, check_cell

if TYPE_CHECKING:
    from pymatgen.core import Lattice

LTOL = 0.2
STOL = 0.3
ANGLE_TOL = 5.0
MAX_ASPECT = 30.0  # longest edge of a reduced cell over the cube root of its volume
_CELL_ONLY = Limits(-1.0, 0.1, (0.1, 1e5), (0.01, 1e4), (0.0, 180.0))
_SHIFTS = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
_SUMS = np.array(
    [shift for shift in _SHIFTS[14:] if np.abs(shift).sum() > 1]
)  # one of each +- pair
_LONGEST = np.array([int(np.flatnonzero(shift)[-1]) for shift in _SUMS])  # last edge in each sum


@dataclass(frozen=True, eq=False)
class ReducedCell:
    """A crystal in the reduced primitive cell in which it is compared.

    Attributes:
        matrix: (3, 3) float64, row vectors, Å.
        numbers: (N,) int64, atomic numbers.
        frac_coords: (N, 3) float64.
    """

    matrix: np.ndarray
    numbers: np.ndarray
    frac_coords: np.ndarray

    @cached_property
    def volume(self) -> float:
        """Å³."""
        return float(abs(np.linalg.det(self.matrix)))

    @cached_property
    def shape(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted cell lengths and successive minima of the lattice, each (3,), volume scaled to 1.

        A minimum is a lower bound where the cell is not reduced well enough for the short search
        to be complete; the bound is what :func:`may_match` needs.
        """
        scale = self.volume ** (-1.0 / 3.0)
        lengths = np.sort(np.linalg.norm(self.matrix, axis=1)) * scale
        return lengths, _successive_minima(self.matrix * scale)


def _successive_minima(matrix: np.ndarray) -> np.ndarray:
    """(3,) lengths of the shortest linearly independent lattice vectors; zeros if not seen.

    With edges in ascending order, the cell is Minkowski reduced, and its edges are the minima,
    if no sum or difference of edges is shorter than the longest edge in it (in three dimensions
    the coefficients -1, 0 and 1 suffice). Otherwise zeros are returned, which reject nothing.
    """
    lengths = np.linalg.norm(matrix, axis=1)
    order = np.argsort(lengths)
    sums = np.linalg.norm(_SUMS @ matrix[order], axis=1)
    if (sums < lengths[order][_LONGEST] * (1.0 - 1e-6)).any():
        return np.zeros(3)
    return lengths[order]


def composition_key(numbers: np.ndarray) -> int:
    """64-bit hash of the reduced formula, the same for every multiple of the formula unit.

    Args:
        numbers: (N,) atomic numbers.
    """
    elements, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    counts //= reduce(gcd, counts.tolist())
    content = np.stack([elements, counts]).astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def cell_digest(cell: Cell) -> bytes:
    """Hash of the exact numbers of a cell: equal digests, equal verdicts."""
    digest = hashlib.blake2b(digest_size=16)
    for part, kind in zip(cell, ("<f8", "<i8", "<f8"), strict=True):
        digest.update(np.ascontiguousarray(part, dtype=kind).tobytes())
    return digest.digest()


def reduce_cell(cell: Cell) -> ReducedCell | None:
    """The reduced primitive cell, by pymatgen; None for a cell that is no crystal.

    A cell that is not finite, has less than 0.1 Å³ an atom, or is thinner than any crystal matches
    nothing: on such cells pymatgen's search fails or goes on for ever.

    Args:
        cell: row vectors in Å, atomic numbers, fractional coordinates.
    """
    if check_cell(cell[0], cell[2], _CELL_ONLY):
        return None
    try:
        reduced = to_structure(cell).get_reduced_structure(reduction_algo="niggli")
        reduced = reduced.get_primitive_structure()
    except (ValueError, ArithmeticError, IndexError):
        return None  # pymatgen finds no reduced form
    if max(reduced.lattice.abc) > MAX_ASPECT * reduced.volume ** (1.0 / 3.0):
        return None
    return ReducedCell(
        np.array(reduced.lattice.matrix),
        np.array(reduced.atomic_numbers, dtype=np.int64),
        np.array(reduced.frac_coords),
    )


def may_match(stored: Sequence[ReducedCell], new: ReducedCell) -> np.ndarray:
    """(M,) bool, False only where ``same_crystal(stored[i], new)`` is certain to be False.

    The verdict needs three independent lattice vectors of the stored crystal that are at most
    1 + ltol times as long as the edges of the new one, at equal volumes; the k-th shortest of
    three independent vectors is never shorter than the k-th successive minimum. And it needs
    equal numbers of sites.
    """
    if not stored:
        return np.zeros(0, bool)
    sizes = np.array([len(cell.numbers) for cell in stored])
    minima = np.stack([cell.shape[1] for cell in stored])
    reach = new.shape[0] * (1.0 + LTOL) * (1.0 + 1e-6)
    return (sizes == len(new.numbers)) & (minima <= reach).all(axis=1)


def same_crystal(stored: ReducedCell, new: ReducedCell) -> bool:
    """Is ``new`` the crystal ``stored``: the verdict of ``StructureMatcher().fit(stored, new)``."""
    from pymatgen.core import Lattice
    from pymatgen.util.coord_cython import is_coord_subset_pbc

    if not np.array_equal(np.sort(stored.numbers), np.sort(new.numbers)):
        return False
    ratio = (new.volume / stored.volume) ** (1.0 / 6.0)
    lattice = Lattice(stored.matrix * ratio)
    target = Lattice(new.matrix / ratio)
    forbidden = (new.numbers[:, None] != stored.numbers[None, :]).astype(np.int64)
    rarest = int(np.argmax(forbidden.sum(axis=1)))
    origins = np.flatnonzero(forbidden[rarest] == 0)
    cart = stored.frac_coords @ lattice.matrix
    n_sites = len(stored.numbers)
    parameters = np.array(target.parameters)
    mappings = lattice.find_all_mappings(
        target, ltol=LTOL, atol=ANGLE_TOL, skip_rotation_matrix=True
    )
    for mapped, _, scale in mappings:
        if not isclose(abs(np.linalg.det(scale)), 1.0, abs_tol=0.5, rel_tol=0.0):
            continue
        frac = mapped.get_fractional_coords(cart)
        frac -= np.floor(frac)
        average = Lattice.from_parameters(*((np.array(mapped.parameters) + parameters) / 2))
        normalisation = (n_sites / average.volume) ** (1.0 / 3.0)
        tolerance = STOL / (pi * normalisation)
        nearby = np.array(average.reciprocal_lattice.abc) * tolerance
        for origin in origins:
            moved = new.frac_coords + (frac[origin] - new.frac_coords[rarest])
            if is_coord_subset_pbc(moved, frac, nearby, forbidden) and (
                _displacement(moved, frac, average, forbidden, tolerance) * normalisation < STOL
            ):
                return True
    return False


def _displacement(
    new: np.ndarray, stored: np.ndarray, lattice: Lattice, forbidden: np.ndarray, tolerance: float
) -> float:
    """Largest distance of paired sites after the best common shift, Å.

    Args:
        new: (N, 3) fractional coordinates.
        stored: (N, 3) fractional coordinates.
        lattice: the average of both lattices.
        forbidden: (N, N) int64, 1 where site i of ``new`` may not pair with j of ``stored``.
        tolerance: Å·2π-scaled length beyond which pairs are not looked at.
    """
    from pymatgen.util.coord_cython import pbc_shortest_vectors
    from scipy.optimize import linear_sum_assignment

    within = np.array(lattice.get_lll_reduced_lattice().reciprocal_lattice.abc) * tolerance
    vectors, squared = pbc_shortest_vectors(
        lattice, new, stored, forbidden, return_d2=True, lll_frac_tol=within
    )
    pairs = linear_sum_assignment(squared)[1]
    short = vectors[np.arange(len(pairs)), pairs]
    return float(np.sqrt(((short - short.mean(axis=0)) ** 2).sum(axis=1)).max())
