"""What a recipe says of the objective: terms, how they combine, what a failure costs."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from nucleate.config import Settings, option
from nucleate.objectives.shaping import Shaping

Combine = Literal["mean", "weighted", "product", "min", "geometric", "chebyshev"]


class TermSettings(Settings):
    """One property, shaped."""

    property: str = option(
        description="name of a property, or path/to/file.py:function", min_length=1
    )
    settings: dict[str, Any] = option(dict, description="settings of that property")
    shaping: Shaping = option(description="how its value becomes a score")
    weight: float = option(1.0, description="its weight in the combination", gt=0)


class ObjectiveSettings(Settings):
    """Terms and their combination."""

    terms: tuple[TermSettings, ...] = option(description="shaped properties", min_length=1)
    combine: Combine = option("mean", description="how scores become one reward")
    failure_penalty: float | None = option(
        None,
        description="reward of a crystal that can't be decoded, is invalid, or whose evaluation "
        "failed; null for the lowest reward that a crystal can get",
        unit="reward",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = [term.weight for term in self.terms]
        if self.combine in ("mean", "min", "product") and any(w != 1.0 for w in weights):
            raise ValueError(
                f"'{self.combine}' has no weights: use combine 'weighted', 'geometric' or "
                "'chebyshev', or drop the weights"
            )
        if self.combine in ("product", "geometric"):
            for i, term in enumerate(self.terms):
                if term.shaping.range[0] < 0:
                    raise ValueError(
                        f"'{self.combine}' needs scores of 0 and more, but the shaping "
                        f"'{term.shaping.type}' of term {i} ({term.property}) reaches "
                        f"{term.shaping.range[0]:g}: use 'linear' or 'sigmoid' there"
                    )
        names = [term.property for term in self.terms]
        repeated = {name for name in names if names.count(name) > 1}
        for name in repeated:
            settings = [term.settings for term in self.terms if term.property == name]
            if any(entry != settings[0] for entry in settings):
                raise ValueError(f"{name} stands in several terms with different settings")
        return self
