"""From the scores of several terms to one reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nucleate.errors import RecipeError
from nucleate.objectives.settings import Combine


class Combination:
    """How the scores of T terms become one reward.

    Attributes:
        range: lowest and highest reward.

    Args:
        how: see :class:`nucleate.objectives.objective.Objective`.
        terms: range of the scores, and weight, of each.

    Raises:
        RecipeError: scores below 0 where a product is taken.
    """

    def __init__(self, how: Combine, terms: Sequence[tuple[tuple[float, float], float]]) -> None:
        self.how = how
        low, high = (np.array(ends) for ends in zip(*(ends for ends, _ in terms), strict=True))
        if how in ("product", "geometric") and low.min() < 0:
            raise RecipeError(
                f"'{how}' needs scores of 0 and more.",
                f"A shaping here reaches {low.min():g}.",
                "Use shapings with range [0, 1], such as 'linear' or 'sigmoid'.",
            )
        self._weight = np.array([weight for _, weight in terms])[:, None]
        self._best = high[:, None]
        lowest, highest = self(np.stack([low, high], axis=1))
        self.range = float(lowest), float(highest)

    def __call__(self, shaped: np.ndarray) -> np.ndarray:
        """Rewards (B,) from scores (T, B)."""
        weight = self._weight
        combined: np.ndarray
        match self.how:
            case "mean":
                combined = shaped.mean(axis=0)
            case "weighted":
                combined = (weight * shaped).sum(axis=0) / weight.sum()
            case "product":
                combined = shaped.prod(axis=0)
            case "min":
                combined = shaped.min(axis=0)
            case "geometric":
                with np.errstate(divide="ignore"):
                    logs = np.log(shaped)
                combined = np.exp((weight * logs).sum(axis=0) / weight.sum())
            case "chebyshev":
                combined = -(weight / weight.max() * (self._best - shaped)).max(axis=0)
        return combined
