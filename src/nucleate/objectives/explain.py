"""What an objective asks for: each property with its unit, shaping and cost, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nucleate import plugins
from nucleate.errors import NucleateError
from nucleate.objectives.evaluate import make_property
from nucleate.objectives.objective import same_property
from nucleate.objectives.settings import (
    FilterSettings,
    ObjectiveSettings,
    PropertySettings,
    TermSettings,
)
from nucleate.objectives.shaping import Shaping
from nucleate.protocols import CostClass, Property

TYPICAL: dict[CostClass, str] = {
    CostClass.COMPOSITION: "microseconds",
    CostClass.MODEL: "milliseconds",
    CostClass.RELAXATION: "seconds",
    CostClass.DFT: "minutes and more",
}
"""How long one crystal takes, in words."""


@dataclass(frozen=True)
class Part:
    """A filter or term of an objective.

    Attributes:
        kind: which of the two.
        name: what its values are called.
        property: the property, by name or ``file.py:function``.
        unit: its unit, None where the property can't be made to ask it.
        wanted: the filter's condition, or the shaping with its settings.
        range: lowest and highest score; None for a filter.
        weight: in the combination; None for a filter.
        cost: order of cost of one crystal, None where the property can't be made.
        missing: what it lacks, and the remedy; empty if it can run.
    """

    kind: Literal["filter", "term"]
    name: str
    property: str
    unit: str | None
    wanted: str
    range: tuple[float, float] | None
    weight: float | None
    cost: CostClass | None
    missing: str


def explain(settings: ObjectiveSettings, base: Path = Path()) -> Iterator[Part]:
    """Each filter and term of an objective.

    The properties are made, in this process, to see whether they can be; nothing is evaluated.

    Args:
        settings: the objective.
        base: folder that ``path.py:function`` is relative to beside the working directory.
    """
    made: dict[str, tuple[Property | None, str]] = {}
    labels: dict[str, str] = {}
    for entry in settings.properties:
        if entry.label not in made:
            made[entry.label] = _make(entry, base)
        prop, missing = made[entry.label]
        if prop is not None and (other := labels.setdefault(prop.key, entry.label)) != entry.label:
            missing = same_property(other, entry.label).sentence
        name = entry.name or (prop.name if prop is not None else entry.label)
        told = Path(entry.property).name  # of a file without its folders
        unit = prop.unit if prop is not None else _declared(entry.property, "unit")
        cost = prop.cost if prop is not None else _declared(entry.property, "cost")
        if isinstance(entry, FilterSettings):
            yield Part("filter", name, told, unit, entry.condition, None, None, cost, missing)
        elif isinstance(entry, TermSettings):
            said, ends = described(entry.shaping), entry.shaping.range
            yield Part("term", name, told, unit, said, ends, entry.weight, cost, missing)


def _make(entry: PropertySettings, base: Path) -> tuple[Property | None, str]:
    try:
        return make_property(entry.property, entry.settings, base=base), ""
    except NucleateError as error:
        return None, error.sentence


def _declared(name: str, attribute: str) -> Any:
    """What the class of a property says of all its instances."""
    if plugins.is_custom(name):
        return None
    try:
        return getattr(plugins.load(plugins.PROPERTIES, name), attribute, None)
    except NucleateError:
        return None


def described(shaping: Shaping) -> str:
    """A shaping with its settings, such as "linear: low 0, high 20, maximise"."""
    settings = shaping.model_dump(exclude={"type"})
    direction = settings.pop("direction", "")
    told = [f"{name} {value:g}" for name, value in settings.items()]
    return f"{shaping.type}: {', '.join([*told, *([direction] if direction else [])])}"
