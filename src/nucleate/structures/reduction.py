"""Crystals in their reduced primitive cells, as pymatgen's StructureMatcher compares them.

pymatgen's ``get_reduced_structure`` and ``get_primitive_structure`` spend most of their time on
objects for sites. Here the same cells are found on arrays.

The edges of a symmetric lattice can be chosen in several ways, and pymatgen tells along the edges
whether an atom is near enough to make a cell smaller. So a crystal for which any choice could make
a smaller cell is described by the edges that pymatgen itself chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np

from nucleate.structures.niggli import niggli, pymatgens_niggli
from nucleate.structures.parsing import Cell

PRIMITIVE_TOL = 0.25  # Å, default of get_primitive_structure
REACH = 3.0 * PRIMITIVE_TOL  # Å, no vector within the tolerance along edges is longer
MAX_PARTS = 1_000_000  # pairs of atoms, times parts of lattice vectors, looked at in one go
MAX_ASPECT = 30.0  # longest edge of a reduced cell over the cube root of its volume
_SUMS = np.array(
    [
        shift
        for shift in product((-1, 0, 1), repeat=3)
        if shift > (0, 0, 0) and sum(map(abs, shift)) > 1
    ]
)  # one of each +- pair
_LONGEST = np.array([int(np.flatnonzero(shift)[-1]) for shift in _SUMS])  # last edge in each sum


@dataclass(frozen=True, eq=False)
class ReducedCell:
    """A crystal in the reduced primitive cell in which it is compared.

    Attributes:
        matrix: (3, 3) float64, row vectors, Å.
        numbers: (N,) int64, atomic numbers, the rarest elements first.
        frac_coords: (N, 3) float64.
        origin: the site that pymatgen lays on each site of its kind.
        volume: Å³.
        lengths: (3,) cell lengths, ascending, volume scaled to 1.
        minima: (3,) successive minima of the lattice, volume scaled to 1; zeros where the cell is
            not seen to be reduced, as a lower bound is all that :class:`Candidates` needs.
    """

    matrix: np.ndarray
    numbers: np.ndarray
    frac_coords: np.ndarray
    origin: int
    volume: float
    lengths: np.ndarray
    minima: np.ndarray


def _lengths_and_minima(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (B, 3), ascending, and lengths (B, 3) of the shortest independent lattice vectors.

    With edges in ascending order, the cell is Minkowski reduced, and its edges are the minima,
    if no sum or difference of edges is shorter than the longest edge in it (in three dimensions
    the coefficients -1, 0 and 1 suffice). Otherwise the minima are zeros, which reject nothing.
    """
    lengths = np.linalg.norm(matrices, axis=2)
    order = np.argsort(lengths, axis=1)
    lengths = np.take_along_axis(lengths, order, axis=1)
    edges = np.take_along_axis(matrices, order[..., None], axis=1)
    sums = np.linalg.norm(_SUMS @ edges, axis=2)
    seen = (sums >= lengths[:, _LONGEST] * (1.0 - 1e-6)).all(axis=1)
    return lengths, np.where(seen[:, None], lengths, 0.0)


def reduce_cell(cell: Cell) -> ReducedCell | None:
    """The reduced primitive cell; see :func:`reduce_cells`."""
    return reduce_cells([cell])[0]


def reduce_cells(cells: Sequence[Cell]) -> list[ReducedCell | None]:
    """The reduced primitive cells, as by pymatgen; None for a cell that is no crystal.

    A cell that is not finite, has less than 0.1 Å³ an atom, or is thinner than any crystal matches
    nothing: on such cells pymatgen's search fails or goes on for ever.

    Args:
        cells: row vectors in Å, atomic numbers, fractional coordinates of each crystal.
    """
    result: list[ReducedCell | None] = [None] * len(cells)
    if not cells:
        return result
    given = np.array([cell[0] for cell in cells], dtype=float)
    sizes = np.array([len(cell[1]) for cell in cells])
    frac = np.concatenate([cell[2] for cell in cells])
    rows = np.flatnonzero(_usable(given, sizes, frac))
    frac[~np.isfinite(frac)] = 0.0
    bases = niggli(given[rows])
    rows, bases = rows[found := np.isfinite(bases).all(axis=(1, 2))], bases[found]
    turns = np.zeros_like(given)
    turns[rows] = given[rows] @ np.linalg.inv(bases)
    frac = np.einsum("ni,nij->nj", frac, np.repeat(turns, sizes, axis=0))
    frac -= np.floor(frac)
    atoms = np.split(frac, np.cumsum(sizes[:-1]))
    reduced = [
        (basis, np.asarray(cells[row][1], dtype=np.int64), atoms[row])
        for row, basis in zip(rows.tolist(), bases, strict=True)
    ]
    large = [i for i, cell in enumerate(reduced) if _may_be_smaller(cell)]
    smaller = _primitive([_turned(reduced[i], pymatgens_niggli(given[rows[i]])) for i in large])
    for i, cell in zip(large, smaller, strict=True):
        reduced[i] = cell
    matrices = np.array([cell[0] for cell in reduced]).reshape(-1, 3, 3)
    volumes = np.abs(np.linalg.det(matrices))
    lengths, minima = _lengths_and_minima(matrices)
    scale = volumes[:, None] ** (-1.0 / 3.0)
    lengths, minima = lengths * scale, minima * scale
    sound = lengths[:, 2] <= MAX_ASPECT  # no NaN
    for i, (row, (matrix, numbers, coords)) in enumerate(zip(rows.tolist(), reduced, strict=True)):
        if sound[i]:
            order, origin = _order(numbers.tobytes())
            result[row] = ReducedCell(
                matrix,
                numbers[order],
                coords[order],
                origin,
                float(volumes[i]),
                lengths[i],
                minima[i],
            )
    return result


def _usable(matrices: np.ndarray, sizes: np.ndarray, frac: np.ndarray) -> np.ndarray:
    """(B,) bool, whether cells are finite and have a volume in which pymatgen finds its way.

    Args:
        matrices: (B, 3, 3) row vectors, Å.
        sizes: (B,) numbers of atoms.
        frac: (sum of sizes, 3) fractional coordinates of all.
    """
    owner = np.repeat(np.arange(len(sizes)), sizes)
    usable = np.isfinite(matrices).all(axis=(1, 2)) & (sizes > 0)
    usable[owner[~np.isfinite(frac).all(axis=1)]] = False
    matrices = np.where(usable[:, None, None], matrices, np.eye(3))
    volume = np.abs(np.linalg.det(matrices))
    lengths = np.linalg.norm(matrices, axis=2)
    per_atom = volume / np.maximum(sizes, 1)
    usable &= (volume > 0.1) & (per_atom >= 0.1) & (per_atom <= 1e5)
    return usable & (lengths.min(axis=1) >= 0.01) & (lengths.max(axis=1) <= 1e4)


@lru_cache(maxsize=20_000)
def _order(numbers: bytes) -> tuple[np.ndarray, int]:
    """Order of sites by how rare their element is, and the place in it of the first rarest one.

    Args:
        numbers: atomic numbers as 64-bit integers.
    """
    listed = np.frombuffer(numbers, dtype=np.int64).tolist()
    counts = Counter(listed)
    order = sorted(range(len(listed)), key=lambda i: (counts[listed[i]], listed[i]))
    first = min(range(len(listed)), key=lambda i: counts[listed[i]])
    return np.array(order), order.index(first)


def _turned(cell: Cell, basis: np.ndarray) -> Cell:
    """A crystal with other edges of its lattice; NaN where the basis is."""
    matrix, numbers, frac = cell
    frac = frac @ matrix @ np.linalg.inv(basis)
    return basis, numbers, frac - np.floor(frac)


def _may_be_smaller(cell: Cell) -> bool:
    """Whether any choice of edges could make a smaller cell; False for most.

    In a smaller cell the atoms that become one differ by parts of lattice vectors, within the
    tolerance, and all parts occur if no two atoms of one kind are within twice of it. So some part,
    and then a p-th part for a prime p, leads from every atom to one of its kind.
    """
    matrix, numbers, frac = cell
    units, groups = _kinds(numbers.tobytes())
    if units == 1:
        return False
    reach = REACH * np.linalg.norm(np.linalg.inv(matrix), axis=0)  # fractional
    parts = _parts(units)
    # an atom's nearest image may be more than half a cell away, or there is too much to look at
    if reach.max() >= 0.5 or len(parts) * len(numbers) ** 2 > MAX_PARTS:
        return True
    for group in groups:
        atoms = frac[group]
        away = atoms - atoms[:, None]
        away -= np.rint(away)
        if (np.abs(away) <= 2.0 * reach).all(axis=-1).sum() > len(group):
            continue  # this kind can't rule out a part
        away = away - parts[:, None, None]
        away -= np.rint(away)
        squared = ((away @ matrix) ** 2).sum(axis=-1)
        parts = parts[(squared <= REACH**2).any(axis=-1).all(axis=-1)]
        if not len(parts):
            return False
    return True


@lru_cache(maxsize=64)
def _parts(units: int) -> np.ndarray:
    """(K, 3) fractional p-th parts of lattice vectors for each prime p in ``units``.

    Of parts that are multiples of one another, up to lattice vectors, there is one.
    """
    primes = [p for p in range(2, units + 1) if units % p == 0 and all(p % q for q in range(2, p))]
    return np.array(
        [
            (a / p, b / p, c / p)
            for p in primes
            for steps in (([1], range(p), range(p)), ([0], [1], range(p)), ([0], [0], [1]))
            for a, b, c in product(*steps)
        ]
    )


def _primitive(cells: Sequence[Cell]) -> list[Cell]:
    """What ``Structure.get_primitive_structure`` gives, without its objects for sites.

    The basis of a crystal that pymatgen can't reduce holds NaN.
    """
    found, depths = list(cells), np.zeros(len(cells), int)
    for row, cell in enumerate(cells):
        while (smaller := _smaller(cell)) is not None:
            cell = smaller
            depths[row] += 1
        found[row] = cell
    while len(rows := np.flatnonzero(depths)):  # pymatgen reduces once for each step
        bases = niggli(np.array([found[row][0] for row in rows]))
        for row, basis in zip(rows.tolist(), bases, strict=True):
            found[row] = _turned(found[row], basis)
        depths[rows] -= 1
        depths[rows[np.isnan(bases).any(axis=(1, 2))]] = 0
    return found


def _smaller(cell: Cell) -> Cell | None:
    """The first smaller cell that ``get_primitive_structure`` finds, not reduced.

    A smaller cell holds the atoms of each element a whole number of times fewer, and each of its
    vectors leads from the first atom of the rarest element to another one and every atom to one
    of its kind, each within twice the tolerance.
    """
    matrix, numbers, frac = cell
    units, groups = _kinds(numbers.tobytes())
    if units == 1:
        return None
    tolerance = PRIMITIVE_TOL / np.sqrt((matrix * matrix).sum(axis=1))
    rarest = frac[groups[0]]
    shifts = rarest - rarest[0]
    for group in groups:
        atoms = frac[group]
        away = shifts[:, None, None] - (atoms - atoms[:, None])
        away -= np.rint(away)
        shifts = shifts[(np.abs(away) <= 2.0 * tolerance).all(-1).any(-1).all(-1)]
    forms, inverses = _sublattices(units)
    away = inverses[:, :, None] - shifts
    away -= np.round(away)
    found = (np.abs(away) < tolerance).all(axis=-1).any(axis=-1).all(axis=-1)
    by_symbol = sorted(groups, key=lambda group: _symbols()[numbers[group[0]]])
    for form, inverse in zip(forms[found], inverses[found], strict=True):
        basis = inverse @ matrix
        within = PRIMITIVE_TOL / np.linalg.norm(basis, axis=1)
        merged = [_merged(frac[group], form, tolerance, within) for group in by_symbol]
        coords = [atoms for atoms in merged if atoms is not None]
        if len(coords) == len(by_symbol):
            kinds = [numbers[group[0]] for group in by_symbol]
            return basis, np.repeat(kinds, list(map(len, coords))), np.concatenate(coords)
    return None


def _merged(
    frac: np.ndarray, form: np.ndarray, tolerance: np.ndarray, within: np.ndarray
) -> np.ndarray | None:
    """Atoms (N / n, 3) of one element in an n-th part of the cell; None where it is none.

    Args:
        frac: (N, 3) fractional coordinates.
        form: (3, 3) the cell in terms of its part, of determinant n.
        tolerance: (3,) fractional, of the cell.
        within: (3,) fractional, of its part.
    """
    away = frac - frac[:, None]
    apart = (np.abs(away - np.round(away)) > 2.0 * tolerance).any(axis=-1)
    np.fill_diagonal(apart, val=True)
    atoms = frac @ form
    away = atoms - atoms[:, None]
    same = (np.abs(away - np.round(away)) < within).all(axis=-1) & apart
    size = round(float(np.prod(np.diag(form))))
    if (same.sum(axis=0) != size).any() or not all(same[row][:, row].all() for row in same):
        return None
    atoms %= 1
    result, added = [], np.zeros(len(frac), bool)
    for i, row in enumerate(same):
        if not added[i]:
            added |= row
            first, *others = atoms[row]
            for n, other in enumerate(others, 2):
                offset = other - first
                first = first + (offset - np.round(offset)) / n
            result.append(first)
    return np.array(result)


@lru_cache(maxsize=20_000)
def _kinds(numbers: bytes) -> tuple[int, list[np.ndarray]]:
    """Formula units, and the sites of each element, the rarest first, then by symbol."""
    listed = np.frombuffer(numbers, dtype=np.int64)
    groups = [np.flatnonzero(listed == z) for z in _by_symbol(np.unique(listed).tolist())]
    return gcd(*map(len, groups)), sorted(groups, key=len)


def _by_symbol(numbers: list[int]) -> list[int]:
    """Atomic numbers in the order of their symbols."""
    return sorted(numbers, key=_symbols().__getitem__)


@lru_cache(maxsize=1)
def _symbols() -> list[str]:
    """Symbols by atomic number."""
    from pymatgen.core import Element

    return ["", *(Element.from_Z(z).symbol for z in range(1, 119))]


@lru_cache(maxsize=64)
def _sublattices(units: int) -> tuple[np.ndarray, np.ndarray]:
    """Hermite normal forms (M, 3, 3) of all cells of 2 to ``units`` parts, and their inverses.

    The inverses are bases of the parts in fractions of the cell; parts divide ``units``.
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
    return np.array(forms, dtype=float), np.linalg.inv(np.array(forms, dtype=float))
