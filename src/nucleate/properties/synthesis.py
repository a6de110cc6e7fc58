"""Whether a crystal looks like those that have been made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nucleate.properties.predicted import Predicted

if TYPE_CHECKING:
    from pathlib import Path

    from nucleate.execution.pool import Pool


class Synthesizability(Predicted):
    """Probability, 0 to 1, that a crystal of the Materials Project is reported in the ICSD.

    Crystals that are not reported may still be possible to make, so this is a likeness to what has
    been made, not a chance of success. Accuracy and range of validity: docs/predictors.md.

    Args:
        predictor: folder of another predictor of such a probability.
        pool: worker processes to predict in; this process if None.
    """

    def __init__(
        self, predictor: str | Path = "synthesizability", pool: Pool | None = None
    ) -> None:
        super().__init__(predictor, pool)
