"""Trade-offs: which crystals nothing beats in every property, and how much they cover.

Scores are larger for better. A crystal dominates another if it is as good in every term and better
in one; those that none dominates are the Pareto front. The hypervolume is the part of the space of
scores that the front dominates, measured from a stated reference point, so that one number says
whether a front has moved (E. Zitzler, L. Thiele, IEEE Trans. Evol. Comput. 3, 257 (1999)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(scores: np.ndarray) -> np.ndarray:
    """Which rows no other row dominates; of equal rows the first.

    Args:
        scores: (N, T) finite, larger is better.

    Returns:
        (N,) bool.
    """
    scores = np.asarray(scores, dtype=np.float64)
    # a row that dominates another comes before it: its sum is no smaller, nor is it in ties
    order = np.lexsort((*-scores.T[::-1], -scores.sum(axis=1)))
    kept = np.empty_like(scores)
    rows: list[int] = []
    for i in order.tolist():
        if not (kept[: len(rows)] >= scores[i]).all(axis=1).any():
            kept[len(rows)] = scores[i]
            rows.append(i)
    mask = np.zeros(len(scores), dtype=bool)
    mask[rows] = True
    return mask


def hypervolume(scores: np.ndarray, reference: Sequence[float] | np.ndarray) -> float:
    """Volume that is dominated by some row and dominates the reference, exactly.

    By exclusive volumes (L. While, L. Bradstreet, L. Barone, IEEE Trans. Evol. Comput. 16, 86
    (2012)). Two terms take microseconds; with each further one the time grows.

    Args:
        scores: (N, T) finite, larger is better.
        reference: (T,) scores; rows that are not better than it in every term count nothing.
    """
    above = np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    above = above[(above > 0).all(axis=1)]
    return _volume(above[pareto_front(above)])


def _volume(points: np.ndarray) -> float:
    """Volume of the union of boxes from the origin to each of some points, none dominated."""
    if points.shape[1] == 1:
        return float(points.max(initial=0.0))
    points = points[np.argsort(points[:, 0], kind="stable")]
    if points.shape[1] == 2:
        # ascending in the first term, hence descending in the second
        return float((np.diff(points[:, 0], prepend=0.0) * points[:, 1]).sum())
    total = 0.0
    for i, point in enumerate(points):
        # the box of a point, less what the later ones cover of it
        inside = np.minimum(points[i + 1 :], point)
        total += float(point.prod()) - _volume(inside[pareto_front(inside)])
    return total


class ParetoFront:
    """The front of all that it was shown, on scores scaled to [0, 1].

    Args:
        ranges: lowest and highest score of each of T terms. The reference point of the hypervolume
            is the lowest score of every term, and 1 is the volume of all scores there can be.

    Attributes:
        scores: (N, T) scaled scores of the front.
        names: N names of what has them, such as digests.
    """

    def __init__(self, ranges: Sequence[tuple[float, float]]) -> None:
        self.low, high = (np.array(ends, dtype=np.float64) for ends in zip(*ranges, strict=True))
        self.span = high - self.low
        self.scores = np.zeros((0, len(self.low)))
        self.names: list[str] = []
        self._hypervolume: float | None = None

    def add(self, scores: np.ndarray, names: Sequence[str]) -> None:
        """Show it more.

        Args:
            scores: (B, T); rows with NaN are left out.
            names: B names.
        """
        scaled = (np.asarray(scores, dtype=np.float64) - self.low) / self.span
        known = np.flatnonzero(np.isfinite(scaled).all(axis=1))
        everything = np.concatenate([self.scores, scaled[known]])
        all_names = self.names + [names[i] for i in known.tolist()]
        kept = np.flatnonzero(pareto_front(everything))
        if len(kept) == len(self.names) and (kept < len(self.names)).all():
            return
        self.scores = everything[kept]
        self.names = [all_names[i] for i in kept]
        self._hypervolume = None

    @property
    def hypervolume(self) -> float:
        """Part of the box of all possible scores that the front dominates, 0 to 1."""
        if self._hypervolume is None:
            self._hypervolume = hypervolume(self.scores, np.zeros(len(self.low)))
        return self._hypervolume

    def __len__(self) -> int:
        return len(self.names)
