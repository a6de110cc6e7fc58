"""A few crystals through every property before a long run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nucleate.errors import NucleateError
from nucleate.objectives.evaluate import evaluate
from nucleate.properties.shared import Shared
from nucleate.protocols import Property, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.objectives.objective import Objective
    from nucleate.store.experience import Evaluation

CRYSTALS = 4
"""How many are tried."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What one property said of the crystals.

    Attributes:
        label: what the objective calls the property.
        prop: the property.
        evaluations: one for each distinct crystal.
    """

    label: str
    prop: Property
    evaluations: list[Evaluation]

    @property
    def ok(self) -> int:
        """Crystals that have a value."""
        return sum(entry.status is Status.OK for entry in self.evaluations)

    @property
    def seconds(self) -> float:
        """Mean wall time of a crystal, s."""
        return math.fsum(entry.seconds for entry in self.evaluations) / len(self.evaluations)

    def __str__(self) -> str:
        said = f"{self.label}: a value for {self.ok} of {len(self.evaluations)} crystals"
        values = [entry.value for entry in self.evaluations if entry.status is Status.OK]
        if values:
            unit = f" {self.prop.unit}" if self.prop.unit else ""
            said += f", {min(values):.4g} to {max(values):.4g}{unit}"
        return f"{said}, {self.seconds:.2g} s each"


def dry_run(
    objective: Objective, structures: Sequence[Structure], digests: Sequence[str]
) -> list[Trial]:
    """Evaluate every property of an objective, whatever its filters say.

    Values are recorded and charged to no step; a step that samples one of the crystals finds its
    values, and is charged for them then. Failures are not kept: what is mended is tried again.

    Args:
        objective: what is tried.
        structures: a few valid crystals.
        digests: their content hashes.

    Returns:
        One trial for each property, the cheapest first; none without crystals.

    Raises:
        NucleateError: a property failed on all of at least two crystals and gave one and the same
            reason, which is then not the crystals' own.
    """
    if not structures:
        logger.warning("no valid crystal was drawn to try the objective on")
        return []
    crystals = dict(zip(digests, structures, strict=True))
    trials, shared = [], Shared()
    for label, prop in objective.properties.items():
        found = objective.store.lookup(crystals, prop.key)
        new = {digest: s for digest, s in crystals.items() if digest not in found}
        fresh = evaluate(prop, list(new), list(new.values()), objective.cache, shared)
        values = {digest: entry for digest, entry in fresh.items() if entry.status is Status.OK}
        objective.store.record(None, prop.key, values, name=label, unit=prop.unit, cost=prop.cost)
        trials.append(Trial(label, prop, [*found.values(), *fresh.values()]))
        _judge(trials[-1])
    return trials


def _judge(trial: Trial) -> None:
    """Refuse a property that can't work; warn of one that gave nothing for other reasons."""
    name, n = trial.label, len(trial.evaluations)
    if trial.ok:
        return
    told = {(entry.status, entry.reason) for entry in trial.evaluations}
    status, reason = next(iter(told))
    if len(told) == 1 < n and status is not Status.UNSUPPORTED:
        raise NucleateError(
            f"The property {name!r} failed on all {n} crystals that it was tried on.",
            f"{status.value}: {reason}",
            "Mend its settings or what it needs, and try again: nucleate check --dry-run.",
        )
    logger.warning("%s had no value for any of %d crystals tried: %s", name, n, reason)
