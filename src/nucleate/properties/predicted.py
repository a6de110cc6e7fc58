"""What trained predictors say, as properties."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from nucleate.execution.chunks import spread
from nucleate.execution.pool import Pool
from nucleate.predictors.checkpoint import SHIPPED, load_predictor
from nucleate.predictors.features import CrystalFeatures, frozen_chgnet
from nucleate.predictors.predictor import Prediction, Predictor
from nucleate.properties.shared import Shared, scores_of
from nucleate.protocols import CostClass, Measurements, Scores
from nucleate.structures.elements import SYMBOLS

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell

Joint: TypeAlias = tuple[Prediction, ...]  # of one crystal, by several predictors
Features: TypeAlias = CrystalFeatures | Exception

TIMEOUT = 60.0  # seconds for one crystal in a pool


class JointPredictors:
    """Predictors that share the features of each crystal.

    Args:
        predictors: folders, or names of such that ship.
        pool: worker processes for the features; this process if None.

    Raises:
        CheckpointError: one is missing, or its files can't be used.
    """

    def __init__(self, predictors: Sequence[str | Path], pool: Pool | None = None) -> None:
        self.each = [load_predictor(predictor) for predictor in predictors]
        self._pool = pool

    @property
    def key(self) -> str:
        """Weights of the predictors and of the CHGNet under them, for cache keys."""
        weights = "-".join(predictor.weights_sha256[:16] for predictor in self.each)
        return f"{weights}/chgnet-{frozen_chgnet().weights_hash[:16]}"

    @property
    def measurement(self) -> str:
        """Key of the features, whatever is predicted from them."""
        return f"features/chgnet-{frozen_chgnet().weights_hash[:16]}"

    def predict(
        self, structures: Sequence[Structure | Cell], shared: Measurements | None = None
    ) -> list[Joint | Exception]:
        """All predictions for each of B crystals, order kept, or the first failure among them."""
        features = (shared or Shared()).get(self.measurement, structures, self._features)
        each = [predictor.of_features(features) for predictor in self.each]
        joint: list[Joint | Exception] = []
        for of_crystal in zip(*each, strict=True):
            failed = next((one for one in of_crystal if isinstance(one, Exception)), None)
            joint.append(of_crystal if failed is None else failed)
        return joint

    def _features(self, structures: Sequence[Structure | Cell]) -> list[Features]:
        if self._pool is None:
            return frozen_chgnet().features(structures)
        return spread(self._pool, _features_in_worker, structures, TIMEOUT).result()


def _features_in_worker(cells: list[Cell]) -> list[Features]:
    return frozen_chgnet().features(cells)


class Predicted:
    """The quantity that a predictor was trained for; of a tensor the mean of its eigenvalues.

    Name and unit are those of the predictor. A crystal with an element that was in too few training
    crystals is unsupported. ``Scores.extra`` holds ``NAME_spread``, the standard deviation of the
    heads, in the same unit.

    Args:
        predictor: folder of a predictor, or the name of one that ships.
        pool: worker processes for CHGNet's part; this process if None.

    Raises:
        CheckpointError: there is none, or its files can't be used.
    """

    cost = CostClass.MODEL
    paths: ClassVar[Mapping[str, Container[str]]] = {"predictor": SHIPPED}

    def __init__(self, predictor: str | Path, pool: Pool | None = None) -> None:
        self._predictors = JointPredictors([predictor], pool)
        [self.predictor] = self._predictors.each
        self.name = self.predictor.target.name
        self.unit = self.predictor.target.unit

    @property
    def key(self) -> str:
        """Cache key: the weights of the predictor and of CHGNet."""
        return f"{self.name}/1/{self._predictors.key}"

    @property
    def description(self) -> dict[str, Any]:
        """What the value refers to, for reports."""
        return described(self.predictor)

    @property
    def measurement(self) -> str:
        """Key of CHGNet's features of a crystal, which all predictors read."""
        return self._predictors.measurement

    def evaluate(
        self, structures: Sequence[Structure | Cell], shared: Measurements | None = None
    ) -> Scores:
        """Predictions for B crystals, order kept."""
        return scores_of(
            self._predictors.predict(structures, shared),
            lambda joint: (joint[0].value, ""),
            lambda joint: {f"{self.name}_spread": joint[0].spread},
        )


def described(predictor: Predictor) -> dict[str, Any]:
    """Where a predictor comes from and where it holds, for reports."""
    card = predictor.card
    return {
        "predictor": predictor.weights_sha256,
        "kind": predictor.target.kind,
        "elements": [SYMBOLS[z - 1] for z in predictor.elements],
        **{key: card[key] for key in ("source", "attribution", "licence", "labels") if key in card},
        "test": card.get("metrics", {}).get("test", {}),
    }
