"""A trained predictor: heads over one frozen CHGNet, their mean, and how far they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from nucleate.physics.potentials import UnsupportedError
from nucleate.predictors.features import (
    COMPONENTS,
    CrystalFeatures,
    FeatureBatch,
    frozen_chgnet,
)
from nucleate.structures.elements import SYMBOLS

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.predictors.head import Head
    from nucleate.predictors.tables import Target

CRYSTALS_PER_BATCH = 256
LEAST_SEEN = 5
"""Training crystals in which an element must occur for a prediction to be trusted."""


@dataclass(frozen=True)
class Standardisation:
    """From what a head gives to the unit of the target.

    Attributes:
        mean, scale: of the values, or of their logarithms where the target is learnt so.
        tensor: standard deviation of the values, by which traceless parts are divided.
    """

    mean: float
    scale: float
    tensor: float


class Prediction(NamedTuple):
    """What a predictor says of a crystal, in the unit of its target.

    Attributes:
        value: of a tensor the mean of its eigenvalues.
        spread: standard deviation of the heads' values; NaN for a single head.
        tensor: (3, 3) float64 if asked for, else None.
    """

    value: float
    spread: float
    tensor: np.ndarray | None = None


class Predictor:
    """Predicts one quantity of crystals.

    Args:
        target: what is predicted.
        heads: the trained heads.
        standardisation: from what they give to the target's unit.
        element_counts: training crystals with each element, by atomic number.
        card: where it comes from and how good it is, for reports; plain values.
        weights_sha256: of the file of weights, "" before it is saved.
    """

    def __init__(
        self,
        target: Target,
        heads: Sequence[Head],
        standardisation: Standardisation,
        element_counts: Mapping[int, int],
        card: Mapping[str, Any],
        weights_sha256: str = "",
    ) -> None:
        self.target = target
        self.heads = list(heads)
        self.standardisation = standardisation
        self.element_counts = dict(element_counts)
        self.card = dict(card)
        self.weights_sha256 = weights_sha256

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that it may be asked about."""
        return sorted(z for z, count in self.element_counts.items() if count >= LEAST_SEEN)

    def predict(
        self, structures: Sequence[Structure | Cell], *, tensor: bool = False
    ) -> list[Prediction | Exception]:
        """Predictions for B crystals, order kept.

        Args:
            structures: crystals, as structures or as arrays.
            tensor: also the whole tensor, if that is what the predictor is for.

        Returns:
            For each crystal a prediction, or why there is none: an :class:`UnsupportedError` where
            an element was in too few training crystals, what CHGNet says of a crystal that it
            can't read.

        Raises:
            ValueError: a tensor is asked of a predictor of another kind.
        """
        return self.of_features(frozen_chgnet().features(structures, bonds=tensor), tensor=tensor)

    def of_features(
        self, features: Sequence[CrystalFeatures | Exception], *, tensor: bool = False
    ) -> list[Prediction | Exception]:
        """The same for features that were found before, with bonds if the tensor is wanted."""
        if tensor and self.target.kind != "tensor":
            raise ValueError(f"{self.target.name} is no tensor but a {self.target.kind}")
        results: list[Prediction | Exception | None] = [None] * len(features)
        usable: list[tuple[int, CrystalFeatures]] = []
        for i, crystal in enumerate(features):
            if isinstance(crystal, Exception):
                results[i] = crystal
            elif (unsupported := self._unsupported(crystal.numbers)) is not None:
                results[i] = unsupported
            else:
                usable.append((i, crystal))
        for start in range(0, len(usable), CRYSTALS_PER_BATCH):
            rows, crystals = zip(*usable[start : start + CRYSTALS_PER_BATCH], strict=True)
            for i, result in zip(rows, self._evaluate(crystals, tensor), strict=True):
                results[i] = result
        return results  # type: ignore[return-value]  # every entry is set above

    def _unsupported(self, numbers: np.ndarray) -> UnsupportedError | None:
        """Why crystals of these elements can't be judged."""
        for z in np.unique(numbers).tolist():
            seen = self.element_counts.get(z, 0)
            if seen < LEAST_SEEN:
                return UnsupportedError(
                    f"{SYMBOLS[z - 1]} occurs in {seen} training crystals of {self.target.name}, "
                    f"{LEAST_SEEN} are needed"
                )
        return None

    def _evaluate(self, crystals: Sequence[CrystalFeatures], tensor: bool) -> list[Prediction]:
        batch = FeatureBatch.of(crystals)
        values, parts = [], []
        with torch.inference_mode():
            for head in self.heads:
                value, traceless = head(batch)
                values.append(self._in_unit(value.double()).numpy())
                if tensor and traceless is not None:
                    parts.append(traceless.double().numpy() * self.standardisation.tensor)
        mean = np.mean(values, axis=0)
        spread = np.full(len(mean), np.nan)
        if len(values) > 1:
            spread = np.std(values, axis=0, ddof=1)
        tensors: list[np.ndarray | None] = [None] * len(mean)
        if parts:
            whole = np.empty((len(mean), 3, 3))
            for component, (a, b) in zip(np.mean(parts, axis=0).T, COMPONENTS, strict=True):
                whole[:, a, b] = whole[:, b, a] = component + (a == b) * mean
            tensors = [*whole]
        return [*map(Prediction, mean.tolist(), spread.tolist(), tensors)]

    def _in_unit(self, value: torch.Tensor) -> torch.Tensor:
        if self.target.kind == "probability":
            return value.sigmoid()
        value = value * self.standardisation.scale + self.standardisation.mean
        value = value.exp() if self.target.scale == "log" else value
        return value if self.target.minimum is None else value.clamp_min(self.target.minimum)
