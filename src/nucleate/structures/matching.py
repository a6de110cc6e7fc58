"""The verdict "same crystal" on two cells, equal to pymatgen's StructureMatcher with defaults.

``StructureMatcher().fit(stored, new)`` (S. P. Ong et al., Comput. Mater. Sci. 68 (2013) 314;
ltol 0.2, stol 0.3, angle_tol 5 degrees, primitive cells, scaled to equal volume, sites compared by
element) spends most of its time copying ``Structure`` objects and reducing the same crystals
again. Here a crystal is reduced once, by pymatgen's own reduction, and kept as arrays, and the
search over lattice mappings and translations runs on those, all at once, so that the verdict is
the same.

Two facts about the definition. After reduction to primitive cells, crystals with unequal numbers
of sites never match. And ``fit`` is not symmetric for pairs close to a tolerance, since the
tolerances on lengths are relative to the second crystal: the one stored earlier is always first,
the new one second, as in ``StructureMatcher.group_structures``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import product
from math import gcd, pi

import numpy as np

from nucleate.structures.niggli import niggli
from nucleate.structures.parsing import Cell, to_structure
from nucleate.structures.validity import Limits, check_cell

LTOL = 0.2
STOL = 0.3
ANGLE_TOL = 5.0
PRIMITIVE_TOL = 0.25  # Å, default of get_primitive_structure
MAX_BLOCK = 500_000  # site pairs looked at in one go
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

        The minima are zeros where the cell is not seen to be reduced; a lower bound is all that
        :meth:`Candidates.may_match` needs.
        """
        scale = self.volume ** (-1.0 / 3.0)
        lengths = np.sort(np.linalg.norm(self.matrix, axis=1)) * scale
        return lengths, _successive_minima(self.matrix * scale)

    @cached_property
    def contacts(self) -> np.ndarray:
        """(N,) distance of each atom to its nearest neighbour or image, ascending.

        In units of the cube root of the volume per atom; a measure of likeness, which need not be
        exact in skew cells.
        """
        delta = self.frac_coords[:, None] - self.frac_coords[None, :]
        vectors = (delta - np.round(delta)) @ self.matrix
        squared = ((vectors[:, :, None] + _SHIFTS @ self.matrix) ** 2).sum(axis=-1)
        squared[squared < 1e-12] = np.inf  # the atom itself
        per_atom = self.volume / len(self.numbers)
        return np.sort(np.sqrt(squared.min(axis=(1, 2)))) / per_atom ** (1.0 / 3.0)


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
        reduced = _primitive(_niggli(cell))
    except (ValueError, ArithmeticError, IndexError):
        return None  # pymatgen finds no reduced form
    volume = abs(float(np.linalg.det(reduced[0])))
    if np.linalg.norm(reduced[0], axis=1).max() > MAX_ASPECT * volume ** (1.0 / 3.0):
        return None
    return ReducedCell(*reduced)


def _niggli(cell: Cell) -> Cell:
    """What ``Structure.get_reduced_structure`` gives, without its objects for sites."""
    reduced = niggli(np.asarray(cell[0], dtype=float))
    frac = cell[2] @ cell[0] @ np.linalg.inv(reduced)
    return reduced, cell[1], frac - np.floor(frac)


def _primitive(cell: Cell) -> Cell:
    """What ``Structure.get_primitive_structure`` gives; asked only where a smaller cell may be."""
    numbers = np.asarray(cell[1], dtype=np.int64)
    if not _may_be_supercell((cell[0], numbers, cell[2])):
        return cell[0], numbers, cell[2]
    found = to_structure((cell[0], numbers, cell[2])).get_primitive_structure()
    return (
        np.array(found.lattice.matrix),
        np.array(found.atomic_numbers, dtype=np.int64),
        np.array(found.frac_coords),
    )


def _may_be_supercell(cell: Cell) -> bool:
    """False only where ``get_primitive_structure`` looks for a smaller cell in vain.

    A smaller cell holds the atoms of each element a whole number of times fewer, and each of its
    vectors leads from the first atom of the rarest element to another one and every atom to one
    of its kind, each within twice the tolerance.
    """
    matrix, numbers, frac = cell
    groups = [frac[numbers == z] for z in _by_symbol(np.unique(numbers).tolist())]
    units = reduce(gcd, map(len, groups))
    if units == 1:
        return False
    tolerance = PRIMITIVE_TOL / np.linalg.norm(matrix, axis=1) * (1.0 + 1e-6)
    groups.sort(key=len)
    shifts = groups[0] - groups[0][0]
    for group in groups:
        for atom in group:
            away = shifts[:, None] - (group - atom)
            away -= np.round(away)
            shifts = shifts[(np.abs(away) <= 2.0 * tolerance).all(axis=-1).any(axis=-1)]
    away = _sublattices(units)[:, :, None] - shifts
    away -= np.round(away)
    return bool((np.abs(away) <= tolerance).all(axis=-1).any(axis=-1).all(axis=-1).any())


def _by_symbol(numbers: list[int]) -> list[int]:
    """Atomic numbers in the order of their symbols."""
    return sorted(numbers, key=_symbols().__getitem__)


@lru_cache(maxsize=1)
def _symbols() -> list[str]:
    """Symbols by atomic number."""
    from pymatgen.core import Element

    return ["", *(Element.from_Z(z).symbol for z in range(1, 119))]


@lru_cache(maxsize=64)
def _sublattices(units: int) -> np.ndarray:
    """(M, 3, 3) bases, in fractions of a cell, of all lattices that divide it in 2 to ``units``.

    Their inverses are the Hermite normal forms of the divisors of ``units``.
    """
    forms = [
        [[a, b, c], [0, e, f], [0, 0, size // a // e]]
        for size in range(2, units + 1)
        if units % size == 0
        for a in range(1, size + 1)
        if size % a == 0
        for e in range(1, size // a + 1)
        if size // a % e == 0
        for b, c, f in product(range(a), range(a), range(e))
    ]
    return np.linalg.inv(np.array(forms, dtype=float))


class Candidates:
    """Stored crystals of one reduced formula, searched for those that a new one may match."""

    def __init__(self) -> None:
        self.cells: list[ReducedCell] = []
        self._sizes = np.zeros(4, np.int64)
        self._minima = np.zeros((4, 3))

    def append(self, cell: ReducedCell) -> None:
        """One more stored crystal."""
        row = len(self.cells)
        if row == len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros(row, np.int64)])
            self._minima = np.concatenate([self._minima, np.zeros((row, 3))])
        self._sizes[row], self._minima[row] = len(cell.numbers), cell.shape[1]
        self.cells.append(cell)

    def may_match(self, new: ReducedCell) -> np.ndarray:
        """Rows for which ``same_crystal(cells[row], new)`` can be True, the likeliest first.

        The verdict needs equal numbers of sites, and three independent lattice vectors of the
        stored crystal that are at most 1 + ltol times as long as the edges of the new one, at
        equal volumes; the k-th shortest of three independent vectors is never shorter than the
        k-th successive minimum. The order is that of similar lattices and contacts.
        """
        n = len(self.cells)
        reach = new.shape[0] * (1.0 + LTOL) * (1.0 + 1e-6)
        able = (self._sizes[:n] == len(new.numbers)) & (self._minima[:n] <= reach).all(axis=1)
        rows = np.flatnonzero(able)
        if len(rows) > 1:
            known = np.stack([self.cells[row].contacts for row in rows])
            unlike = ((known - new.contacts) ** 2).sum(axis=1)
            unlike += ((self._minima[rows] - new.shape[1]) ** 2).sum(axis=1)
            rows = rows[np.argsort(unlike, kind="stable")]
        return rows


class AsGiven:
    """A crystal in the cell that it came in, for :func:`surely_same`.

    Attributes:
        cell: row vectors in Å, atomic numbers, fractional coordinates.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    @cached_property
    def primitive(self) -> bool:
        """True only where pymatgen finds no smaller cell, whatever reduced basis it looks in.

        A smaller cell needs a shift that takes each atom to within 0.5 Å along each edge of one of
        its kind, hence to within 1.5 Å; and it is not found by rounding an n-th part of a lattice
        vector to nothing if no lattice vector is as short as n times 0.25 Å.
        """
        matrix, numbers, frac = self.cell
        groups = [frac[numbers == z] for z in np.unique(numbers)]
        units = reduce(gcd, map(len, groups))
        if units == 1:
            return True
        steep = np.linalg.norm(np.linalg.inv(matrix), axis=0)  # 1/Å, inverse spacings of planes
        if not 1.0 / steep.max() > 1.1 * PRIMITIVE_TOL * units:
            return False
        smallest = min(map(len, groups))
        reach = 6.0 * PRIMITIVE_TOL * (1.0 + 1e-6) * steep
        for rarest in groups:  # pymatgen takes one of the smallest groups
            if len(rarest) > smallest:
                continue
            shifts = (rarest - rarest[0])[1:]
            for group in groups:
                if not len(shifts):
                    break
                away = shifts[:, None, None] - (group[None, :] - group[:, None])
                away -= np.round(away)
                shifts = shifts[(np.abs(away) <= reach).all(-1).any(-1).all(-1)]
            if len(shifts):
                return False
        return True


MAX_ASPHERICITY = 1.06
"""Ratio of a strain's largest to its smallest stretch, below which no angle changes by 5 degrees
and no length by 20 %: the largest change of an angle is 2 (arctan(1.06) - 45 degrees) = 3.3."""


def surely_same(stored: AsGiven, new: AsGiven) -> bool:
    """True only where ``same_crystal`` of the reduced cells would be, found without reducing them.

    Both crystals list the same elements in the same order in primitive cells, one a slight strain
    of the other, with atoms that have hardly moved: then every basis of the one lattice is within
    the tolerances of that of the other, and whatever partners the search pairs, the sum of their
    squared distances is at most that of the atoms in the given order, so that no distance reaches
    the tolerance on sites. Distances are allowed to be 1.5 times as large in the average cell.
    """
    (a, numbers, first), (b, others, second) = stored.cell, new.cell
    if not np.array_equal(numbers, others):
        return False
    stretch = np.linalg.svd(np.linalg.solve(b, a), compute_uv=False)
    if not stretch[0] < MAX_ASPHERICITY * stretch[2]:
        return False
    moved = second - first
    moved -= moved[0]
    moved -= np.round(moved)
    scale = (len(numbers) / abs(np.linalg.det(b))) ** (1.0 / 3.0)
    # from any origin on an atom, and then about the mean: four times the largest move
    longest = float(np.sqrt(((moved @ b) ** 2).sum(axis=1).max())) * scale
    if not 4.0 * 1.5 * longest * len(numbers) ** 0.5 < STOL:
        return False
    return stored.primitive and new.primitive


def same_crystal(stored: ReducedCell, new: ReducedCell) -> bool:
    """Is ``new`` the crystal ``stored``: the verdict of ``StructureMatcher().fit(stored, new)``.

    The lattice of ``stored`` is laid on that of ``new`` in every way that the tolerances on
    lengths and angles allow; each way, and each choice of a common origin on the rarest species,
    is a match if every site has a partner of its species within the site tolerance after the best
    common shift.
    """
    if not np.array_equal(np.sort(stored.numbers), np.sort(new.numbers)):
        return False
    ratio = (new.volume / stored.volume) ** (1.0 / 6.0)
    matrix, target = stored.matrix * ratio, _parameters((new.matrix / ratio)[None])[0]
    mapped = _lattice_mappings(matrix, target)
    if len(mapped) == 0:
        return False
    parameters = (_parameters(mapped) + target) / 2
    volume, spacing = _volume_and_spacing(parameters)
    normalisation = (len(stored.numbers) / volume) ** (1.0 / 3.0)
    nearby = 2.0 * STOL / (spacing * normalisation[:, None])
    frac = stored.frac_coords @ matrix @ np.linalg.inv(mapped)
    frac -= np.floor(frac)
    allowed = new.numbers[:, None] == stored.numbers[None, :]
    rarest = int(np.argmin(allowed.sum(axis=1)))
    offsets = frac[:, allowed[rarest]] - new.frac_coords[rarest]  # (mappings, origins, 3)
    pairs = np.nonzero(allowed)
    block = max(1, MAX_BLOCK // (offsets.shape[1] * len(pairs[0])))
    for start in range(0, len(mapped), block):
        part = slice(start, start + block)
        near = _all_have_partner(new.frac_coords, frac[part], offsets[part], nearby[part], pairs)
        for mapping, origin in np.argwhere(near):
            chosen = start + mapping
            moved = new.frac_coords + offsets[chosen, origin]
            distance = _displacement(
                moved, frac[chosen], parameters[chosen], ~allowed, normalisation[chosen]
            )
            if distance * normalisation[chosen] < STOL:
                return True
    return False


def _parameters(matrices: np.ndarray) -> np.ndarray:
    """(M, 6) lengths in Å and angles in degrees of (M, 3, 3) row vectors."""
    lengths = np.linalg.norm(matrices, axis=-1)
    cosines = [
        np.einsum("mi,mi->m", matrices[:, j], matrices[:, k]) / (lengths[:, j] * lengths[:, k])
        for j, k in ((1, 2), (0, 2), (0, 1))
    ]
    angles = np.degrees(np.arccos(np.clip(np.stack(cosines, axis=1), -1.0, 1.0)))
    return np.concatenate([lengths, angles], axis=1)


def _volume_and_spacing(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Volumes (M,) in Å³ and spacings of lattice planes (M, 3) in Å of cells (M, 6)."""
    lengths, angles = parameters[:, :3], np.radians(parameters[:, 3:])
    cosines = np.cos(angles)
    gram = 1.0 - (cosines**2).sum(axis=1) + 2.0 * cosines.prod(axis=1)
    root = np.sqrt(np.maximum(gram, 1e-300))
    return lengths.prod(axis=1) * root, lengths * root[:, None] / np.sin(angles)


def _lattice_mappings(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """All bases of a lattice that agree with given cell parameters within the tolerances.

    Args:
        matrix: (3, 3) row vectors of the lattice, Å.
        target: (6,) lengths in Å and angles in degrees.

    Returns:
        (M, 3, 3) row vectors.
    """
    reach = target[:3].max() * (1.0 + LTOL)
    most = np.floor(reach * np.linalg.norm(np.linalg.inv(matrix), axis=0) + 1e-8).astype(int)
    axes = [np.arange(-n, n + 1) for n in most]
    steps = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = steps @ matrix
    distances = np.linalg.norm(vectors, axis=1)
    shells = []
    for length in target[:3]:
        relative = distances / length
        shells.append(np.flatnonzero((relative < 1.0 + LTOL) & (relative > 1.0 / (1.0 + LTOL))))
    units = [vectors[shell] / distances[shell][:, None] for shell in shells]
    alpha, beta, gamma = (
        np.abs(np.degrees(np.arccos(np.clip(units[i] @ units[j].T, -1.0, 1.0))) - angle)
        <= ANGLE_TOL
        for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), target[3:], strict=True)
    )
    a, b = np.nonzero(gamma)
    pair, c = np.nonzero(alpha[b] & beta[a])
    rows = np.stack([shells[0][a[pair]], shells[1][b[pair]], shells[2][c]], axis=1)
    bases = steps[rows]
    # |det| = 1: the three vectors span the whole lattice
    spans = np.abs(np.einsum("mi,mi->m", bases[:, 0], np.cross(bases[:, 1], bases[:, 2]))) == 1
    return vectors[rows[spans]]


def _all_have_partner(
    new: np.ndarray,
    stored: np.ndarray,
    offsets: np.ndarray,
    nearby: np.ndarray,
    pairs: tuple[np.ndarray, ...],
) -> np.ndarray:
    """(M, O) bool: with this mapping and origin, has every new site a stored one within reach.

    Args:
        new: (N, 3) fractional coordinates.
        stored: (M, N, 3) fractional coordinates in each mapping.
        offsets: (M, O, 3) shift of ``new`` for each mapping and origin.
        nearby: (M, 3) fractional reach along each axis.
        pairs: rows of ``new``, ascending, and of ``stored`` that share a species.
    """
    i, j = pairs
    delta = (new[i] - stored[:, j])[:, None] + offsets[:, :, None]
    delta -= np.round(delta)
    close = (np.abs(delta) <= nearby[:, None, None]).all(axis=-1)
    starts = np.flatnonzero(np.diff(i, prepend=-1))
    found = np.logical_or.reduceat(close, starts, axis=-1)
    return np.logical_and.reduce(found, axis=-1)


def _displacement(
    new: np.ndarray,
    stored: np.ndarray,
    parameters: np.ndarray,
    forbidden: np.ndarray,
    normalisation: float,
) -> float:
    """Largest distance of paired sites after the best common shift, Å.

    Args:
        new: (N, 3) fractional coordinates.
        stored: (N, 3) fractional coordinates.
        parameters: (6,) the average of both cells, Å and degrees.
        forbidden: (N, N) bool, True where site i of ``new`` may not pair with j of ``stored``.
        normalisation: 1/Å, cube root of the number of sites in a volume.
    """
    from pymatgen.core import Lattice
    from pymatgen.util.coord_cython import pbc_shortest_vectors
    from scipy.optimize import linear_sum_assignment

    lattice = Lattice.from_parameters(*parameters)
    reciprocal = np.array(lattice.get_lll_reduced_lattice().reciprocal_lattice.abc)
    vectors, squared = pbc_shortest_vectors(
        lattice,
        new,
        stored,
        forbidden.astype(np.int64),
        return_d2=True,
        lll_frac_tol=reciprocal * STOL / (pi * normalisation),
    )
    pairs = linear_sum_assignment(squared)[1]
    short = vectors[np.arange(len(pairs)), pairs]
    return float(np.sqrt(((short - short.mean(axis=0)) ** 2).sum(axis=1)).max())
