"""Band gap, dielectric constant, refractive index, and the figure of merit of a dielectric.

All are predicted from the crystal as it is, by heads over a frozen CHGNet that learnt PBE and
density functional perturbation theory of the Materials Project. The predictors ship with the
package (``nucleate predictor info``); another one takes their place by its folder. Definitions,
accuracy and ranges of validity: docs/predictors.md.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nucleate.predictors.checkpoint import SHIPPED
from nucleate.properties.predicted import Joint, JointPredictors, Predicted, described
from nucleate.properties.shared import scores_of
from nucleate.protocols import CostClass, Measurements, Scores

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.core import Structure

    from nucleate.execution.pool import Pool
    from nucleate.physics.cells import Cell


class BandGap(Predicted):
    """PBE(+U) band gap, eV; 0 for a metal. Measured gaps are larger, often by half or more.

    Args:
        predictor: folder of another predictor of band gaps.
        pool: worker processes for CHGNet's part; this process if None.
    """

    def __init__(self, predictor: str | Path = "band_gap", pool: Pool | None = None) -> None:
        super().__init__(predictor, pool)


class DielectricTotal(Predicted):
    """Static dielectric constant: mean eigenvalue of the electronic and ionic tensor together.

    Meaningful for insulators only; a metal gets a number too.

    Args:
        predictor: folder of another predictor of the tensor or of its mean.
        pool: worker processes for CHGNet's part; this process if None.
    """

    def __init__(
        self, predictor: str | Path = "dielectric_total", pool: Pool | None = None
    ) -> None:
        super().__init__(predictor, pool)


class RefractiveIndex(Predicted):
    """Refractive index: root of the mean eigenvalue of the electronic dielectric tensor.

    Meaningful for insulators only; a metal gets a number too.

    Args:
        predictor: folder of another predictor of refractive indices.
        pool: worker processes for CHGNet's part; this process if None.
    """

    def __init__(
        self, predictor: str | Path = "refractive_index", pool: Pool | None = None
    ) -> None:
        super().__init__(predictor, pool)


class FigureOfMerit:
    """Total dielectric constant times band gap, eV: high for a good gate dielectric.

    Both factors come from one evaluation of CHGNet, and the failure of one is that of the product.
    ``Scores.extra`` holds ``dielectric_total``, ``band_gap`` (eV) and their spreads as
    :class:`Predicted` has them, and ``figure_of_merit_spread``, as if their errors were
    independent.

    Args:
        band_gap: folder of another predictor of band gaps.
        dielectric_total: folder of another predictor of the dielectric constant.
        pool: worker processes for CHGNet's part; this process if None.
    """

    name = "figure_of_merit"
    unit = "eV"
    cost = CostClass.MODEL
    paths: ClassVar[Mapping[str, Container[str]]] = {
        "band_gap": SHIPPED,
        "dielectric_total": SHIPPED,
    }

    def __init__(
        self,
        band_gap: str | Path = "band_gap",
        dielectric_total: str | Path = "dielectric_total",
        pool: Pool | None = None,
    ) -> None:
        self._predictors = JointPredictors([band_gap, dielectric_total], pool)

    @property
    def key(self) -> str:
        """Cache key: the weights of both predictors and of CHGNet."""
        return f"{self.name}/1/{self._predictors.key}"

    @property
    def description(self) -> dict[str, Any]:
        """What the value refers to, for reports."""
        gap, dielectric = map(described, self._predictors.each)
        return {"band_gap": gap, "dielectric_total": dielectric}

    @property
    def measurement(self) -> str:
        """Key of CHGNet's features of a crystal, which all predictors read."""
        return self._predictors.measurement

    def evaluate(
        self, structures: Sequence[Structure | Cell], shared: Measurements | None = None
    ) -> Scores:
        """Figures of merit of B crystals, order kept."""
        return scores_of(
            self._predictors.predict(structures, shared),
            lambda joint: (joint[0].value * joint[1].value, ""),
            _columns,
        )


def _columns(joint: Joint) -> dict[str, float]:
    gap, dielectric = joint
    return {
        "band_gap": gap.value,
        "band_gap_spread": gap.spread,
        "dielectric_total": dielectric.value,
        "dielectric_total_spread": dielectric.spread,
        "figure_of_merit_spread": math.hypot(
            gap.value * dielectric.spread, dielectric.value * gap.spread
        ),
    }
