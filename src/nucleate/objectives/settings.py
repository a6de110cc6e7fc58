"""What a recipe says of the objective: filters, terms, how they combine, what a failure costs."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from nucleate import plugins
from nucleate.config import Settings, SettingsError, option
from nucleate.objectives.shaping import Shaping
from nucleate.store.experience import COLUMNS

Combine = Literal["mean", "weighted", "product", "min", "geometric", "chebyshev"]


class PropertySettings(Settings):
    """One property."""

    property: str = option(
        description="name of a property, or path/to/file.py:function", min_length=1
    )
    name: str | None = option(
        None,
        description="what its values are called; null for the property's own name. One property "
        "with several settings needs several names",
        pattern=r"^[A-Za-z_][\w.-]*$",
    )
    settings: dict[str, Any] = option(dict, description="settings of that property")

    @model_validator(mode="after")
    def _name_is_free(self) -> Self:
        if self.label in COLUMNS:
            raise SettingsError(
                f"{self.label!r} is a column of every table",
                "Give it another name: 'name: ...' beside 'property'.",
            )
        return self

    @builtins.property
    def label(self) -> str:
        """The name, or that of the property as far as it is known before the property is made."""
        named = self.settings.get("name") if plugins.is_custom(self.property) else None
        return self.name or str(named or self.property.rpartition(":")[2])


class FilterSettings(PropertySettings):
    """A property, and the values of it that a crystal may have."""

    min: float | None = option(
        None, description="least value that passes", unit="unit of the property"
    )
    max: float | None = option(
        None, description="greatest value that passes", unit="unit of the property"
    )
    equals: float | None = option(
        None, description="the only value that passes", unit="unit of the property"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min is None and self.max is None and self.equals is None:
            raise SettingsError("a filter needs a condition", "Give min, max or equals.")
        if self.equals is not None and not (self.min is None and self.max is None):
            raise SettingsError(
                "equals leaves nothing for min and max to say",
                "Remove equals, or remove min and max.",
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise SettingsError(
                f"nothing passes: min {self.min:g} is above max {self.max:g}",
                "Exchange them, or remove one.",
            )
        return self

    def refusal(self, name: str, value: float) -> str:
        """Why a value does not pass, such as "band_gap below 0.5: 0.31"; empty if it does.

        Args:
            name: what to call the property.
            value: finite, in the unit of the property.
        """
        if self.min is not None and value < self.min:
            return f"{name} below {self.min:g}: {value:.6g}"
        if self.max is not None and value > self.max:
            return f"{name} above {self.max:g}: {value:.6g}"
        if self.equals is not None and value != self.equals:
            return f"{name} other than {self.equals:g}: {value:.6g}"
        return ""

    @property
    def condition(self) -> str:
        """The condition in words, such as "0.5 to 2"."""
        if self.equals is not None:
            return f"exactly {self.equals:g}"
        if self.min is None:
            return f"at most {self.max:g}"
        return f"at least {self.min:g}" if self.max is None else f"{self.min:g} to {self.max:g}"


class TermSettings(PropertySettings):
    """One property, shaped."""

    shaping: Shaping = option(description="how its value becomes a score")
    weight: float = option(1.0, description="its weight in the combination", gt=0)


class ObjectiveSettings(Settings):
    """Terms and their combination, and what a crystal has to be to count at all."""

    filters: tuple[FilterSettings, ...] = option(
        (),
        description="what a crystal has to be; one that is not gets the failure penalty, and "
        "properties that cost more are not evaluated",
    )
    terms: tuple[TermSettings, ...] = option(description="shaped properties", min_length=1)
    combine: Combine = option("mean", description="how scores become one reward")
    failure_penalty: float | None = option(
        None,
        description="reward of a crystal that can't be decoded, is invalid, whose evaluation "
        "failed, or that a filter refuses; null for the lowest reward that a crystal can get",
        unit="reward",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = [term.weight for term in self.terms]
        if self.combine in ("mean", "min", "product") and any(w != 1.0 for w in weights):
            raise SettingsError(
                f"'{self.combine}' has no weights",
                "Set combine to 'weighted', 'geometric' or 'chebyshev', or remove the weights.",
            )
        if self.combine in ("product", "geometric"):
            for i, term in enumerate(self.terms):
                if term.shaping.range[0] < 0:
                    raise SettingsError(
                        f"'{self.combine}' needs scores of 0 and more, but the shaping "
                        f"'{term.shaping.type}' of term {i} ({term.property}) reaches "
                        f"{term.shaping.range[0]:g}",
                        "Use 'linear' or 'sigmoid' there.",
                    )
        first: dict[str, PropertySettings] = {}
        for entry in self.properties:
            other = first.setdefault(entry.label, entry)
            if (other.property, other.settings) != (entry.property, entry.settings):
                how = (
                    "with different settings"
                    if other.property == entry.property
                    else (f"as {other.property} and as {entry.property}")
                )
                raise SettingsError(
                    f"{entry.label} stands here twice {how}",
                    f"Give one of the two a name of its own, such as 'name: {entry.label}_2'.",
                )
        return self

    @property
    def properties(self) -> tuple[PropertySettings, ...]:
        """All that names a property: filters, then terms."""
        return (*self.filters, *self.terms)

    def updated(self, change: Callable[[PropertySettings], Mapping[str, Any]]) -> Self:
        """The same objective with some keys of its filters and terms changed.

        Args:
            change: gives, for a filter or term, the keys that change.
        """
        return self.model_copy(
            update={
                "filters": tuple(f.model_copy(update=change(f)) for f in self.filters),
                "terms": tuple(t.model_copy(update=change(t)) for t in self.terms),
            }
        )
