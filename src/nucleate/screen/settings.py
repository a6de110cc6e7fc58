"""What a recipe says of the screen: its stages in order, with their thresholds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from nucleate.config import Settings, SettingsError, option
from nucleate.physics.hull_card import DEFAULT_HULL
from nucleate.physics.relax import RELAXATION_SECONDS, RelaxSettings
from nucleate.structures.validity import DEFAULT_LIMITS

TRAINING = "training"
"""The reference of novelty that a model brings with it: the formulas that it was trained on."""

StageT = TypeVar("StageT", bound=Settings)


class ValidStage(Settings):
    """Distances, cell and volume are those of a crystal."""

    type: Literal["valid"]
    min_distance: float = option(
        DEFAULT_LIMITS.min_distance,
        description="shortest distance of two atoms, images included",
        unit="Å",
        ge=0,
    )
    volume_per_atom: tuple[float, float] = option(
        DEFAULT_LIMITS.volume_per_atom, description="smallest and largest", unit="Å³"
    )


class RelaxedStage(Settings):
    """Relaxed by the screen's potential; what comes after sees the relaxed crystal."""

    type: Literal["relaxed"]
    fmax: float = option(
        RelaxSettings.fmax, description="largest force left on atom or cell", unit="eV/Å", gt=0
    )
    max_steps: int = option(
        RelaxSettings.max_steps,
        description="steps after which a crystal is taken as it is",
        unit="steps",
        ge=0,
    )
    symprec: float | None = option(
        RelaxSettings.symprec,
        description="keep the symmetry found at this tolerance; null for no hold on it",
        unit="Å",
        gt=0,
    )
    timeout: float = option(
        RELAXATION_SECONDS,
        description="time for one crystal, after which it counts as not relaxed",
        unit="s",
        gt=0,
    )
    volume_range: tuple[float, float] = option(
        RelaxSettings.volume_range,
        description="volume over that at the start, beyond which a cell has exploded",
    )


class StableStage(Settings):
    """Energy above hull below a threshold, by the screen's potential."""

    type: Literal["stable"]
    below: float = option(0.1, description="largest energy above hull", unit="eV/atom")
    hull: str = option(DEFAULT_HULL, description="reference hull, name or path", min_length=1)
    correct: bool = option(
        False, description="add the MP2020 corrections to raw PBE(+U) energies of the potential"
    )


class UniqueStage(Settings):
    """The first crystal of its kind that comes this far, in the whole run."""

    type: Literal["unique"]


class NovelStage(Settings):
    """No match in a set of known crystals."""

    type: Literal["novel"]
    reference: str = option(
        TRAINING,
        description="prepared data, a saved reference set, or files of crystals; 'training' for "
        "the formulas that the model was trained on",
        min_length=1,
    )


def _named(stage: Any) -> Any:
    """A stage by its name alone has the default thresholds."""
    return {"type": stage} if isinstance(stage, str) else stage


Stage = Annotated[
    ValidStage | RelaxedStage | StableStage | UniqueStage | NovelStage,
    Field(discriminator="type"),
    BeforeValidator(_named),
]


class ScreenSettings(Settings):
    """The stages that a crystal passes before it is handed to the objective."""

    stages: tuple[Stage, ...] = option(
        lambda: (ValidStage(type="valid"),),
        description="in this order: valid first, then any of relaxed, stable, unique, novel; each "
        "by name, or as a mapping with its thresholds",
        min_length=1,
    )
    potential: str | dict[str, Any] = option(
        "chgnet", description="what relaxes and gives energies: a name, or name and settings"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        names = [stage.type for stage in self.stages]
        if names[0] != "valid":
            raise SettingsError(
                "the first stage has to be 'valid': potentials need crystals",
                "Put 'valid' before the others.",
            )
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(
                    f"the stage '{name}' stands in the list twice", "Remove one of them."
                )
        for stage in self.stages:
            for key in ("volume_per_atom", "volume_range"):
                low, high = getattr(stage, key, (0.0, 1.0))
                if not 0 <= low < high:
                    raise SettingsError(
                        f"{key} of '{stage.type}' goes from {low:g} to {high:g}",
                        "Give the smaller number first, 0 or above.",
                    )
        return self

    def stage(self, kind: type[StageT]) -> StageT | None:
        """The stage of this kind; None if it is not in the list."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)
