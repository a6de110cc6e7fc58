"""The verdict "same crystal" on two cells, equal to pymatgen's StructureMatcher with defaults.

``StructureMatcher().fit(stored, new)`` (S. P. Ong et al., Comput. Mater. Sci. 68 (2013) 314;
ltol 0.2, stol 0.3, angle_tol 5 degrees, primitive cells, scaled to equal volume, sites compared by
element) spends most of its time copying ``Structure`` objects. Here a crystal is reduced once (see
:mod:`nucleate.structures.reduction`), and the search over lattice mappings and translations runs
over many pairs of crystals at once. What could come out otherwise than in pymatgen, for lack of a
clear answer, is asked of pymatgen, so that the verdict is the same.

Two facts about the definition. After reduction to primitive cells, crystals with unequal numbers
of sites never match. And ``fit`` is not symmetric for pairs close to a tolerance, since the
tolerances on lengths are relative to the second crystal: the one stored earlier is always first,
the new one second, as in ``StructureMatcher.group_structures``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from math import pi

import numpy as np

from nucleate.structures.reduction import ReducedCell

LTOL = 0.2
STOL = 0.3
ANGLE_TOL = 5.0
MAX_BLOCK = 100_000  # pairs of sites, before mappings, looked at in one go
TIE = 1e-6  # relative; distances closer to one another than this count as equal
_SHIFTS = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])

_NONE_YET = np.zeros(0, np.int64), np.zeros((0, 3))


class Candidates:
    """Stored crystals of one reduced formula, searched for those that a new one may match."""

    def __init__(self) -> None:
        self.cells: list[ReducedCell] = []
        self._sizes, self._minima = _NONE_YET

    def append(self, cell: ReducedCell) -> None:
        """One more stored crystal."""
        row = len(self.cells)
        if row == len(self._sizes):
            room = max(row, 4)
            self._sizes = np.concatenate([self._sizes, np.zeros(room, np.int64)])
            self._minima = np.concatenate([self._minima, np.zeros((room, 3))])
        self._sizes[row], self._minima[row] = len(cell.numbers), cell.minima
        self.cells.append(cell)

    def may_match(self, new: ReducedCell, start: int = 0) -> np.ndarray:
        """Rows from ``start`` on for which ``same_crystal(cells[row], new)`` can be True.

        The verdict needs equal numbers of sites, and three independent lattice vectors of the
        stored crystal that are at most 1 + ltol times as long as the edges of the new one, at
        equal volumes; the k-th shortest of three independent vectors is never shorter than the
        k-th successive minimum.
        """
        rows = slice(start, len(self.cells))
        reach = new.lengths * (1.0 + LTOL) * (1.0 + 1e-6)
        able = (self._minima[rows] <= reach).all(axis=1) & (self._sizes[rows] == len(new.numbers))
        return start + np.flatnonzero(able)


Pair = tuple[ReducedCell, ReducedCell]


def same_crystal(stored: ReducedCell, new: ReducedCell) -> bool:
    """Is ``new`` the crystal ``stored``: the verdict of ``StructureMatcher().fit(stored, new)``."""
    return bool(same_crystals([(stored, new)])[0])


def same_crystals(pairs: Sequence[Pair]) -> np.ndarray:
    """The verdicts of ``StructureMatcher().fit(stored, new)`` on P pairs (stored, new).

    The lattice of ``stored`` is laid on that of ``new`` in every way that the tolerances on
    lengths and angles allow; each way, and each choice of a common origin on the rarest species,
    is a match if every site has a partner of its species within the site tolerance after the best
    common shift.

    Returns:
        (P,) bool.
    """
    verdicts = np.zeros(len(pairs), bool)
    rows: list[int] = []
    size = 0
    for row, (stored, new) in enumerate(pairs):
        if np.array_equal(stored.numbers, new.numbers):
            if rows and size + len(new.numbers) ** 2 > MAX_BLOCK:
                verdicts[rows] = _verdicts([pairs[i] for i in rows])
                rows, size = [], 0
            rows.append(row)
            size += len(new.numbers) ** 2
    if rows:
        verdicts[rows] = _verdicts([pairs[i] for i in rows])
    return verdicts


def _verdicts(pairs: Sequence[Pair]) -> np.ndarray:
    """(P,) verdicts on pairs with the same atoms; most that match do so edge by edge."""
    verdicts = _Block(pairs, _edge_mappings).verdicts()
    left = np.flatnonzero(~verdicts)
    if len(left):
        verdicts[left] = _Block([pairs[i] for i in left.tolist()], _lattice_mappings).verdicts()
    return verdicts


Mappings = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Block:
    """P pairs of crystals with the same atoms, padded to the largest number N of sites.

    Args:
        pairs: the crystals, stored and new.
        mappings: :func:`_lattice_mappings` or :func:`_edge_mappings`.

    Attributes:
        sizes: (P,) numbers of sites.
        numbers: (P, N) atomic numbers, 0 where there is no site.
        new: (P, N, 3) fractional coordinates.
        pair: (M,) pair of each mapping of its lattices.
        stored: (M, N, 3) fractional coordinates.
        parameters: (M, 6) the average of both cells, Å and degrees.
        normalisation: (M,) 1/Å, cube root of the number of sites in a volume.
        nearby: (M, 3) fractional reach along each axis.
    """

    def __init__(
        self, pairs: Sequence[Pair], mappings: Callable[[np.ndarray, np.ndarray], Mappings]
    ) -> None:
        self.sizes = np.array([len(new.numbers) for _, new in pairs])
        shape = (len(pairs), int(self.sizes.max()))
        self.numbers = np.zeros(shape, np.int64)
        self.new, stored_frac = np.zeros((*shape, 3)), np.zeros((*shape, 3))
        for row, (stored, new) in enumerate(pairs):
            n = len(new.numbers)
            self.numbers[row, :n] = new.numbers
            self.new[row, :n], stored_frac[row, :n] = new.frac_coords, stored.frac_coords
        self.origin = np.array([new.origin for _, new in pairs])
        ratio = np.array([(new.volume / stored.volume) ** (1.0 / 6.0) for stored, new in pairs])
        matrices = np.array([stored.matrix for stored, _ in pairs]) * ratio[:, None, None]
        target = _parameters(np.array([new.matrix for _, new in pairs]) / ratio[:, None, None])
        self.pair, steps, mapped = mappings(matrices, target)
        self.parameters = (_parameters(mapped) + target[self.pair]) / 2
        volume, spacing = _volume_and_spacing(self.parameters)
        self.normalisation = (self.sizes[self.pair] / volume) ** (1.0 / 3.0)
        self.nearby = 2.0 * STOL / (spacing * self.normalisation[:, None])
        self.stored = stored_frac[self.pair] @ np.linalg.inv(steps)
        self.stored -= np.floor(self.stored)
        # the sites of stored that share the species of each site of new lie side by side
        same = self.numbers[:, :, None] == self.numbers[:, None, :]
        self.first, self.count = same.argmax(axis=2), same.sum(axis=2)
        self.count[self.numbers == 0] = 0

    def verdicts(self) -> np.ndarray:
        """(P,) bool.

        The mappings of a pair are tried in turn, more of them each time. In an assignment that
        fits, the vectors from sites to partners differ by less than twice the tolerance. So the
        trial that starts from such a vector of the origin brings every site near its partner; where
        no trial of a mapping does that, those of its trials that are not clear can't fit either.
        """
        verdicts = np.zeros(len(self.sizes), bool)
        turn = np.arange(len(self.pair)) - np.searchsorted(self.pair, self.pair)
        doubtful: list[tuple[int, np.ndarray]] = []
        begin, end = 0, 1
        while len(left := np.flatnonzero((turn >= begin) & ~verdicts[self.pair])):
            mapping, shift = self._trials(left[turn[left] < end])
            fits, clear, near = self._fit(mapping, shift)
            verdicts[self.pair[mapping[fits]]] = True
            rows = np.flatnonzero(~clear & np.isin(mapping, mapping[near]))
            doubtful += zip(mapping[rows].tolist(), shift[rows], strict=True)
            begin, end = end, 4 * end
        for chosen, moved in doubtful:
            if not verdicts[self.pair[chosen]]:
                verdicts[self.pair[chosen]] = self._assigned(chosen, moved)
        return verdicts

    def _trials(self, mappings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mappings (T,) and shifts (T, 3) of new that bring each site near one of its kind.

        Args:
            mappings: (M,) those to try.
        """
        pair = self.pair[mappings]
        count = self.count[pair, self.origin[pair]]
        first = np.repeat(self.first[pair, self.origin[pair]], count)
        mapping = np.repeat(mappings, count)
        at = np.arange(len(mapping)) - np.repeat(np.cumsum(count) - count, count)
        pair = self.pair[mapping]
        shift = self.stored[mapping, first + at] - self.new[pair, self.origin[pair]]
        begin, end = 0, 1
        while begin < self.new.shape[1] and len(mapping):
            away, alike = self._to_partners(mapping, shift, slice(begin, end))
            near = (np.abs(away) <= self.nearby[mapping][:, None, None]).all(axis=-1) & alike
            kept = (near.any(axis=-1) | ~alike.any(axis=-1)).all(axis=1)
            mapping, shift = mapping[kept], shift[kept]
            begin, end = end, 2 * end + 1
        return mapping, shift

    def _to_partners(
        self, mapping: np.ndarray, shift: np.ndarray, sites: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors to sites of new from those sites of stored that share their species.

        Args:
            mapping: (T,) rows of mappings.
            shift: (T, 3) of new.
            sites: S of new.

        Returns:
            (T, S, C, 3) fractional, within half a cell along each axis, for as many partners as the
            commonest species has; (T, S, C) whether there is such a partner.
        """
        pair = self.pair[mapping]
        count = self.count[pair, sites, None]
        others = np.arange(count.max())
        index = np.minimum(self.first[pair, sites, None] + others, self.new.shape[1] - 1)
        moved = self.new[pair, sites] + shift[:, None]
        away = moved[:, :, None] - self.stored[mapping[:, None, None], index]
        return away - np.rint(away), others < count

    def _fit(
        self, mapping: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whether every site has its partner after the best common shift.

        Returns:
            (T,) whether it has, (T,) clearly or not, (T,) whether one is near before that shift.

        Where the nearest partners of all sites are clearly that and all different, they are the
        best assignment.
        """
        fits, clear, near = (np.full(len(mapping), value) for value in (False, False, True))
        wide = self.nearby[mapping].max(axis=1)
        for some, images in ((wide < 0.5 - TIE, _SHIFTS[13:14]), (wide >= 0.5 - TIE, _SHIFTS)):
            rows = np.flatnonzero(some & (wide < 1.0 - TIE))
            if len(rows):
                fits[rows], clear[rows], near[rows] = self._nearest(
                    mapping[rows], shift[rows], images
                )
        return fits, clear, near

    def _assigned(self, mapping: int, shift: np.ndarray) -> bool:
        """The same by the best assignment, of one mapping with one (3,) shift."""
        pair = self.pair[mapping]
        n = self.sizes[pair]
        numbers = self.numbers[pair, :n]
        distance = _displacement(
            self.new[pair, :n] + shift,
            self.stored[mapping, :n],
            self.parameters[mapping],
            numbers[:, None] != numbers[None, :],
            self.normalisation[mapping],
        )
        return bool(distance * self.normalisation[mapping] < STOL)

    def _nearest(
        self, mapping: np.ndarray, shift: np.ndarray, images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`_fit` by the nearest partners: the best assignment, if it is clearly that.

        Args:
            mapping: (T,) rows of mappings.
            shift: (T, 3) of new.
            images: (I, 3) lattice shifts among which every vector within reach is found.
        """
        pair = self.pair[mapping]
        n = int(self.sizes[pair].max())
        away, alike = self._to_partners(mapping, shift, slice(n))
        present = self.count[pair, :n] > 0
        matrices = _matrices(self.parameters[mapping])
        vectors = (away.reshape(len(pair), -1, 3) @ matrices).reshape(*alike.shape, 1, 3)
        vectors = vectors + (images @ matrices)[:, None, None]
        squared = (vectors * vectors).sum(axis=-1)
        squared[~alike] = np.inf
        squared = squared.reshape(len(pair), n, -1)  # by partner and image
        best = squared.argmin(axis=2)[..., None]
        shortest = np.take_along_axis(squared, best, axis=2)
        np.put_along_axis(squared, best, np.inf, axis=2)
        shortest = np.where(present, shortest[..., 0], 0.0)
        reach = (2.0 * STOL / self.normalisation[mapping][:, None]) ** 2
        alone = (squared.min(axis=2) > shortest * (1.0 + TIE) + TIE * reach) | ~present
        near = (shortest <= reach * (1.0 + TIE)).all(axis=1)
        partner = self.first[pair, :n] + best[..., 0] // len(images)
        partner = np.where(present, partner, np.arange(n))
        different = (np.sort(partner, axis=1) == np.arange(n)).all(axis=1)
        clear = (alone & (shortest <= reach * (1.0 - TIE))).all(axis=1) & different
        flat = vectors.reshape(len(pair), n, -1, 3)
        chosen = np.take_along_axis(flat, best[..., None], axis=2)[:, :, 0]
        chosen[~present] = 0.0
        mean = chosen.sum(axis=1) / self.sizes[pair][:, None]
        moved = np.where(present[..., None], chosen - mean[:, None], 0.0)
        longest = np.sqrt((moved * moved).sum(axis=-1).max(axis=1))
        fits = clear & (longest * self.normalisation[mapping] < STOL)
        return fits, clear, near


def _parameters(matrices: np.ndarray) -> np.ndarray:
    """(M, 6) lengths in Å and angles in degrees of (M, 3, 3) row vectors."""
    lengths = np.linalg.norm(matrices, axis=-1)
    first, second = matrices[:, [1, 0, 0]], matrices[:, [2, 2, 1]]
    cosines = (first * second).sum(axis=-1) / (lengths[:, [1, 0, 0]] * lengths[:, [2, 2, 1]])
    return np.concatenate([lengths, _degrees(cosines)], axis=1)


def _degrees(cosines: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))


def _volume_and_spacing(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Volumes (M,) in Å³ and spacings of lattice planes (M, 3) in Å of cells (M, 6)."""
    lengths, angles = parameters[:, :3], np.radians(parameters[:, 3:])
    cosines = np.cos(angles)
    gram = 1.0 - (cosines**2).sum(axis=1) + 2.0 * cosines.prod(axis=1)
    root = np.sqrt(np.maximum(gram, 1e-300))
    return lengths.prod(axis=1) * root, lengths * root[:, None] / np.sin(angles)


def _matrices(parameters: np.ndarray) -> np.ndarray:
    """(M, 3, 3) row vectors in Å of cells (M, 6), the first along x, the second in the xy plane."""
    volume, _ = _volume_and_spacing(parameters)
    a, b, c = parameters[:, :3].T
    cosines, sine = np.cos(np.radians(parameters[:, 3:])), np.sin(np.radians(parameters[:, 5]))
    alpha, beta, gamma = cosines.T
    matrices = np.zeros((len(parameters), 3, 3))
    matrices[:, 0, 0] = a
    matrices[:, 1, 0], matrices[:, 1, 1] = b * gamma, b * sine
    matrices[:, 2, 0], matrices[:, 2, 1] = c * beta, c * (alpha - beta * gamma) / sine
    matrices[:, 2, 2] = volume / (a * b * sine)
    return matrices


def _edge_mappings(matrices: np.ndarray, target: np.ndarray) -> Mappings:
    """Those of :func:`_lattice_mappings` whose bases are the row vectors in some order."""
    return _bases(matrices, target, np.eye(3))


def _lattice_mappings(matrices: np.ndarray, target: np.ndarray) -> Mappings:
    """All bases of lattices that agree with given cell parameters within the tolerances.

    Args:
        matrices: (P, 3, 3) row vectors of the lattices, Å.
        target: (P, 6) lengths in Å and angles in degrees.

    Returns:
        pair: (M,) rows of the lattices, ascending.
        steps: (M, 3, 3) the bases in whole steps along the row vectors.
        mapped: (M, 3, 3) the bases, row vectors, Å.
    """
    reach = target[:, :3].max(axis=1) * (1.0 + LTOL)
    steep = np.linalg.norm(np.linalg.inv(matrices), axis=1)
    most = np.floor(reach[:, None] * steep + 1e-8).astype(int).max(axis=1)
    found = [(np.zeros(0, int), np.zeros((0, 3, 3)), np.zeros((0, 3, 3)))]
    for n in np.unique(most).tolist():
        rows = np.flatnonzero(most == n)
        for part in np.array_split(rows, 1 + len(rows) * (2 * n + 1) ** 3 // MAX_BLOCK):
            pair, steps, mapped = _bases(matrices[part], target[part], _steps(n))
            found.append((part[pair], steps, mapped))
    pair, steps, mapped = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(pair, kind="stable")
    return pair[order], steps[order], mapped[order]


@lru_cache(maxsize=8)
def _steps(n: int) -> np.ndarray:
    """(K, 3) all whole steps of at most ``n`` along each axis but the one to nowhere."""
    return np.array([step for step in product(range(-n, n + 1), repeat=3) if any(step)], float)


def _bases(matrices: np.ndarray, target: np.ndarray, steps: np.ndarray) -> Mappings:
    """:func:`_lattice_mappings` among the lattice vectors that (K, 3) ``steps`` lead to."""
    vectors = steps @ matrices
    distances = np.sqrt((vectors * vectors).sum(axis=-1))
    relative = distances[:, None] / target[:, :3, None]
    pair, edge, step = np.nonzero((relative < 1.0 + LTOL) & (relative > 1.0 / (1.0 + LTOL)))
    # (P, 3, L) the vectors as long as each edge, padded with -1
    flat = pair * 3 + edge
    place = np.arange(len(flat)) - np.searchsorted(flat, flat)
    shell = np.full((len(matrices), 3, int(place.max(initial=-1)) + 1), -1)
    shell[pair, edge, place] = step
    unit = vectors / distances[..., None]
    unit = unit[np.arange(len(matrices))[:, None, None], shell]
    alpha, beta, gamma = (
        (
            np.abs(_degrees(unit[:, i] @ unit[:, j].swapaxes(1, 2)) - angle[:, None, None])
            <= ANGLE_TOL
        )
        & (shell[:, i, :, None] >= 0)
        & (shell[:, j, None, :] >= 0)
        for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), target[:, 3:].T, strict=True)
    )
    pair, a, b = np.nonzero(gamma)
    row, c = np.nonzero(alpha[pair, b] & beta[pair, a])
    pair, a, b = pair[row], a[row], b[row]
    chosen = np.stack([shell[pair, 0, a], shell[pair, 1, b], shell[pair, 2, c]], axis=1)
    bases = steps[chosen]
    # |det| = 1: the three vectors span the whole lattice
    spans = np.abs(np.rint(np.linalg.det(bases))) == 1
    return pair[spans], bases[spans], vectors[pair[:, None], chosen][spans]


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
