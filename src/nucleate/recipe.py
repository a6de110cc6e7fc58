"""The recipe of a run: what is designed, by which model, for which objective, at what cost.

``load_recipe("stability")`` reads a built-in recipe, ``load_recipe("mine.yaml")`` a file; every
key has a default, that of the recipe ``stability``, so that a recipe says only what it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, Field, field_validator, model_validator

from nucleate.config import (
    Settings,
    SettingsError,
    load_settings,
    option,
    read_text,
    written_as,
)
from nucleate.errors import InputError, RecipeError, did_you_mean
from nucleate.execution.settings import ClusterSettings
from nucleate.objectives.settings import ObjectiveSettings, PropertySettings, TermSettings
from nucleate.objectives.shaping import Clip
from nucleate.screen.settings import ScreenSettings
from nucleate.structures.elements import RADIOACTIVE, allowed_elements

STABILITY = "e_above_hull"
"""Name of the property by which a crystal is stable."""

SpaceGroup = Annotated[int, Field(ge=1, le=230)]
Probability = Annotated[float, Field(gt=0, le=1)]


class ModelSettings(Settings):
    """Where the policy starts."""

    checkpoint: str = option("base", description="name of a shipped model, or the path of one")
    prior: str | None = option(
        None,
        description="another model that the KL divergence is measured to, by name or path; null "
        "for the checkpoint",
    )


class ElementSettings(Settings):
    """Which elements may occur; masked in sampling and in the log-probability alike."""

    allow: tuple[str, ...] | None = option(
        None, description="symbols of the only elements allowed; null for all", min_length=1
    )
    deny: tuple[str, ...] = option((), description="symbols of elements never used")
    exclude_radioactive: bool = option(
        True,
        description="leave out Tc, Pm and everything from Po on (Bi stays) unless allow names them",
    )
    exclude_noble_gases: bool = option(False, description="leave out He, Ne, Ar, Kr, Xe, Rn, Og")

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        try:
            self.numbers()
        except RecipeError as error:
            raise SettingsError(error.what, error.fix) from error
        return self

    def numbers(self) -> list[int]:
        """Atomic numbers that may occur, ascending."""
        return allowed_elements(
            self.allow,
            self.deny,
            exclude_radioactive=self.exclude_radioactive,
            exclude_noble_gases=self.exclude_noble_gases,
        )

    def radioactive(self) -> list[int]:
        """Those of them that are radioactive."""
        return [number for number in self.numbers() if number in RADIOACTIVE]


class ConditionSettings(Settings):
    """What sampling is held to."""

    space_groups: Literal["training"] | tuple[SpaceGroup, ...] = option(
        "training",
        description="'training' draws from the training set's distribution; a list of numbers "
        "draws evenly from them",
    )
    elements: ElementSettings = option(ElementSettings, description="which elements may occur")
    max_atoms: int = option(
        20,
        description="most atoms in the primitive cell; of 'training', space groups without so "
        "small a crystal are left out",
        unit="atoms",
        ge=1,
        le=10_000,
    )
    temperature: float = option(
        1.0, description="divides the logits of letters and species", gt=0, le=10
    )
    coordinate_temperature: float = option(
        0.1,
        description="widens draws of coordinates and lattice; 1 is the model's own",
        gt=0,
        le=10,
    )
    top_p: Probability = option(
        1.0, description="keep the likeliest tokens that together have this probability"
    )

    @field_validator("space_groups")
    @classmethod
    def _not_empty(
        cls, value: Literal["training"] | tuple[int, ...]
    ) -> Literal["training"] | tuple[int, ...]:
        if not value:
            raise SettingsError(
                "there is no space group", "Give at least one number from 1 to 230, or 'training'."
            )
        if isinstance(value, tuple) and len(set(value)) != len(value):
            raise SettingsError("a space group stands in the list twice", "Remove one of them.")
        return value


class GuardSettings(Settings):
    """When the policy counts as collapsing, measured against the first window of steps."""

    action: Literal["stop", "widen", "warn", "off"] = option(
        "stop", description="stop the run, raise the KL weight, only say so, or don't look"
    )
    min_systems: float = option(
        0.85, description="distinct chemical systems in a batch, fraction of the start", ge=0, le=1
    )
    min_space_groups: float = option(
        0.85, description="distinct space groups in a batch, fraction of the start", ge=0, le=1
    )
    min_sites: float = option(
        0.75, description="mean sites of a crystal, fraction of the start", ge=0, le=1
    )
    min_atoms: float = option(
        0.75, description="mean atoms of a primitive cell, fraction of the start", ge=0, le=1
    )
    min_entropy: float = option(
        0.5, description="entropy of the element distribution, fraction of the start", ge=0, le=1
    )
    window: int = option(
        8, description="steps averaged before judging", unit="steps", ge=1, le=10_000
    )


class PPOSettings(Settings):
    """Proximal policy optimisation of E[r - tau ln(p / p_prior)] over whole crystals."""

    type: Literal["ppo"] = option("ppo", description="the algorithm")
    form: Literal["published", "default"] = option(
        "default",
        description="'published' keeps the KL term inside the clipped surrogate; 'default' takes "
        "its gradient unclipped",
    )
    learning_rate: float = option(1e-4, description="Adam step", gt=0, le=1)
    kl_weight: float = option(
        0.03, description="tau, weight of the KL divergence to the prior", unit="reward/nat", ge=0
    )
    kl_target: float | None = option(
        None, description="adapt tau so that the KL divergence stays here", unit="nat", gt=0
    )
    kl_rate: float = option(
        0.1, description="largest relative change of tau in one step", gt=0, le=1
    )
    clip_epsilon: float = option(0.2, description="ratios are clipped to 1 +- this", gt=0, lt=1)
    inner_steps: int = option(2, description="passes over each batch", ge=1, le=100)
    minibatch: int | None = option(
        64, description="crystals in one update; null for the whole batch", ge=1
    )
    ratio: Literal["sequence", "token"] = option(
        "sequence", description="one ratio for a crystal, or one for each of its tokens"
    )
    continuous_weight: float = option(
        0.0,
        description="weight of coordinates and lattice in the ratio and the KL divergence; 0 "
        "reinforces letters and species alone; above 0, use coordinate temperatures near 1",
        ge=0,
        le=1,
    )
    whiten: bool = option(True, description="scale advantages to unit variance")
    baseline: Literal["batch", "batch_ema", "space_group"] = option(
        "space_group",
        description="what is subtracted from the reward: the batch mean, its running mean, or a "
        "running mean for each space group",
    )
    baseline_decay: float = option(0.95, description="memory of the running mean", ge=0, lt=1)
    size_neutrality: float = option(
        0.1,
        description="share of the mean advantage of crystals with as many sites that is subtracted "
        "too; 1 takes away the incentive to draw smaller crystals",
        ge=0,
        le=1,
    )
    gradient_clip: float = option(1.0, description="largest norm of the gradient", gt=0)
    average: float = option(
        0.95,
        description="memory of the average of the weights over steps, which is what the run "
        "gives; 0 gives the last weights",
        ge=0,
        lt=1,
    )
    entropy_weight: float = option(
        0.0, description="reward for entropy of the policy", unit="reward/nat", ge=0
    )
    novelty_bonus: float = option(
        0.8,
        description="added to the reward of a stable crystal whose formula is new to the training "
        "set and to the run; has to be 0 where the objective has no e_above_hull",
        unit="reward",
        ge=0,
    )
    novelty_uses: int = option(
        3, description="appearances over which the bonus of one formula falls to 0", ge=1
    )
    guard: GuardSettings = option(GuardSettings, description="what counts as collapse")


class BudgetSettings(Settings):
    """When to stop: at the first limit reached; a limit that is not named is none."""

    batch_size: int = option(256, description="crystals sampled in a step", ge=2, le=1_000_000)
    steps: int | None = option(None, description="updates", unit="steps", ge=1)
    evaluations: int | None = option(
        None,
        description="evaluations of the costliest property; null where another limit is given",
        unit="evaluations",
        ge=1,
    )
    minutes: float | None = option(
        None,
        description="wall time of tuning; null where another limit is given",
        unit="min",
        gt=0,
    )
    limits: dict[str, Annotated[int, Field(ge=1)]] = option(
        dict,
        description="evaluations by property or cost class (composition, model, relaxation, dft), "
        "such as {dft: 200}; the batch that reaches a limit is finished",
        unit="evaluations",
    )
    core_hours: float | None = option(
        None, description="time that workers spend on evaluations", unit="h", gt=0
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        ends = (self.steps, self.evaluations, self.minutes, self.core_hours)
        if not self.limits and all(end is None for end in ends):
            raise SettingsError(
                "a run needs an end",
                "Give budget.steps, .evaluations, .minutes, .limits or .core_hours.",
            )
        if self.evaluations is not None and self.evaluations < self.batch_size:
            raise SettingsError(
                f"budget.evaluations ({self.evaluations}) has no room for one batch "
                f"(budget.batch_size {self.batch_size})",
                "Raise budget.evaluations or lower budget.batch_size.",
            )
        return self


class EvaluationSettings(Settings):
    """How base and tuned model are compared at the end."""

    samples: int = option(1000, description="crystals from each model and seed", ge=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = option(
        (1,), description="one comparison for each", min_length=1
    )
    hulls: tuple[str, ...] = option(
        ("chgnet",), description="further reference hulls to judge by, names or paths"
    )
    stable_below: float = option(
        0.1, description="stable means an energy above hull below this", unit="eV/atom"
    )
    objective_samples: int = option(
        200,
        description="of these samples, those of each model and seed that the objective is "
        "evaluated on too, where it asks for more than the energy above hull; 0 for none",
        ge=0,
    )
    relax: bool = option(
        False,
        description="relax the crystals of both models before judging them, whatever the "
        "objective does; takes much longer",
    )
    coordinate_temperature: float | None = option(
        None,
        description="of coordinates and lattice when base and tuned are compared; null for the "
        "condition's",
        gt=0,
        le=10,
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise SettingsError(
                "a seed stands in the list twice: its samples would be counted twice",
                "Remove one of them.",
            )
        return value


class OutputSettings(Settings):
    """Where results go."""

    directory: str = option("runs", description="folder of all runs", min_length=1)
    name: str | None = option(
        None, description="folder of this run; null for the recipe's name", min_length=1
    )
    cache: str | None = option(
        "evaluations.sqlite",
        description="file, relative to the folder of all runs, of the evaluations that they share; "
        "null: this run shares none",
        min_length=1,
    )
    checkpoint_every: int = option(5, description="between checkpoints", unit="steps", ge=1)
    best: int = option(50, description="best crystals written as CIF and extxyz", ge=0)
    report: bool = option(True, description="write report.html")
    tensorboard: Literal["auto", True, False] = option(
        "auto", description="'auto': where the package is installed"
    )


def _default_objective() -> ObjectiveSettings:
    shaping = Clip(type="clip", low=0.0, high=0.6, direction="minimise")
    return ObjectiveSettings(terms=(TermSettings(property="e_above_hull", shaping=shaping),))


def _default_budget() -> BudgetSettings:
    return BudgetSettings(evaluations=30_000, minutes=8)


Name = Annotated[
    str,
    written_as(
        r"^[A-Za-z0-9][\w.-]*$",
        "letters, digits, dots, dashes and underscores, a letter or digit first",
    ),
]
Device = Annotated[
    str, written_as(r"^(auto|cpu|mps|cuda(:\d+)?)$", "auto, cpu, mps, cuda or cuda:1")
]


class Recipe(Settings):
    """A whole run."""

    name: Name = option("run", description="name of the recipe")
    description: str = option("", description="what it is for")
    seed: int = option(0, description="seed of all random draws", ge=0, lt=2**31)
    workers: int = option(
        0, description="processes that evaluate; 0 for one on each core", ge=0, le=4096
    )
    cluster: ClusterSettings | None = option(
        None, description="batch jobs that evaluate instead of processes of this machine"
    )
    device: Device = option(
        "auto",
        description="where the policy computes: cpu, cuda, cuda:1, ... or mps; auto for CUDA where "
        "there is one, else cpu",
    )
    model: ModelSettings = option(ModelSettings, description="where the policy starts")
    condition: ConditionSettings = option(ConditionSettings, description="what sampling is held to")
    screen: ScreenSettings = option(
        ScreenSettings, description="what a crystal passes before it is scored"
    )
    objective: ObjectiveSettings = option(_default_objective, description="what is wanted")
    algorithm: PPOSettings = option(PPOSettings, description="how the policy learns")
    budget: BudgetSettings = option(_default_budget, description="when to stop")
    evaluation: EvaluationSettings = option(
        EvaluationSettings, description="how the result is judged"
    )
    output: OutputSettings = option(OutputSettings, description="where results go")

    @model_validator(mode="after")
    def _one_kind_of_workers(self) -> Self:
        if self.cluster is not None and self.workers:
            raise SettingsError(
                "'workers' is for this machine", "With a cluster, set cluster.workers instead."
            )
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        stages = {stage.type for stage in self.screen.stages}
        for entry in self.objective.properties:
            if entry.label in stages:
                raise SettingsError(
                    f"the name {entry.label!r} in the objective is that of a stage of the screen",
                    "Give it another one: 'name: ...' beside 'property'.",
                )
        return self

    @model_validator(mode="after")
    def _minibatch_fits(self) -> Self:
        minibatch, batch = self.algorithm.minibatch, self.budget.batch_size
        if minibatch is None or minibatch <= batch:
            return self
        if "minibatch" in self.algorithm.model_fields_set:
            raise SettingsError(
                f"algorithm.minibatch ({minibatch}) is larger than budget.batch_size ({batch})",
                "Lower algorithm.minibatch or raise budget.batch_size.",
            )
        # the default is cut to the batch: what a run writes down has to be a recipe again
        cut = self.algorithm.model_copy(update={"minibatch": batch})
        object.__setattr__(self, "algorithm", cut)
        return self


def built_in_recipes() -> dict[str, str]:
    """Text of each recipe that ships, by name."""
    folder = resources.files("nucleate") / "data" / "recipes"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text("utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by built-in name or path, strictly.

    Args:
        name_or_path: such as ``stability`` or ``mine.yaml``.
        overrides: assignments such as ``budget.steps=20``.

    Raises:
        RecipeError: an unknown key, property or setting, or a value out of range.
        InputError: no such recipe.
    """
    built_in = built_in_recipes()
    path = Path(name_or_path)
    if str(name_or_path) in built_in:
        text, source = built_in[str(name_or_path)], f"recipe {name_or_path!r}"
    elif path.suffix in (".yaml", ".yml") or path.is_file():
        text, source = read_text(path), str(path)
    else:
        raise InputError(
            f"There is no recipe {str(name_or_path)!r}.",
            "It is neither built in nor a .yaml file.",
            did_you_mean(str(name_or_path), built_in),
        )
    if all(line.partition("#")[0].strip() in ("", "---") for line in text.splitlines()):
        raise RecipeError(
            f"{source} is empty.",
            "A run of nothing but defaults is that of the recipe stability.",
            "Write the recipe again, or name stability.",
        )
    recipe = load_settings(Recipe, text, source, overrides)
    check_properties(recipe.objective, source, base=path.parent)
    return with_absolute_paths(recipe, source, base=path.parent)


def with_absolute_paths(recipe: Recipe, source: str, base: Path = Path()) -> Recipe:
    """The recipe with files of functions and paths in settings spelt out, for use from anywhere.

    Args:
        recipe: the recipe.
        source: name of the file, for messages.
        base: folder that a path is relative to beside the working directory.

    Raises:
        RecipeError: there is no file of a function.
    """
    from nucleate import plugins

    def spelt_out(entry: PropertySettings) -> dict[str, Any]:
        changed: dict[str, Any] = {
            "settings": plugins.absolute_settings(entry.property, entry.settings, base)
        }
        if plugins.is_custom(entry.property):
            path, function = plugins.custom_path(entry.property, base, source)
            changed["property"] = f"{path}:{function}"
        return changed

    potential = plugins.absolute_potential(recipe.screen.potential, base)
    return recipe.model_copy(
        update={
            "objective": recipe.objective.updated(spelt_out),
            "screen": recipe.screen.model_copy(update={"potential": potential}),
        }
    )


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        key: dotted, such as ``budget.steps``; ``[]`` marks a list.
        default: as YAML would write it; ``required`` where there is none.
        text: what it is, with its unit.
    """

    key: str
    default: str
    text: str


def describe(
    model: type[BaseModel], prefix: str = "", section: BaseModel | None = None
) -> Iterator[Key]:
    """Every key of a settings model, section by section; kinds of shaping are not opened.

    Args:
        model: the settings.
        prefix: of the keys.
        section: the defaults where they are not those of the single fields.
    """
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        unit = extra.get("unit") if isinstance(extra, dict) else None
        text = (field.description or "") + (f" [{unit}]" if unit else "")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            default_section = field.get_default(call_default_factory=True)
            yield from describe(inner, f"{prefix}{name}.", default_section)
            continue
        entries = [entry for entry in get_args(inner) if isinstance(entry, type)]
        sections = [entry for entry in entries if issubclass(entry, BaseModel)]
        if len(sections) == 1 and get_origin(inner) is tuple:
            yield from describe(sections[0], f"{prefix}{name}[].")
            continue
        if len(sections) == 1 and type(None) in entries:
            yield Key(f"{prefix}{name}", "null", text)
            yield from describe(sections[0], f"{prefix}{name}.")
            continue
        if sections:
            kinds = [get_args(kind.model_fields["type"].annotation)[0] for kind in sections]
            text += f"; its type is one of {', '.join(kinds)}"
        default = "required"
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            if section is not None:
                value = getattr(section, name)
            value = list(value) if isinstance(value, tuple) else value
            default = json.dumps(value, default=lambda entry: entry.type)  # an entry by its kind
        yield Key(f"{prefix}{name}", default, text)


def check_properties(objective: ObjectiveSettings, source: str, base: Path = Path()) -> None:
    """Check that each property of the objective exists and takes the settings given.

    Args:
        objective: the objective.
        source: name of the file, for messages.
        base: folder that ``path.py:function`` is relative to beside the working directory.

    Raises:
        RecipeError: an unknown property or setting.
    """
    from nucleate import plugins

    for section, entries in (("filters", objective.filters), ("terms", objective.terms)):
        for i, entry in enumerate(entries):
            where = f"{source}: objective.{section}.{i}"
            if plugins.is_custom(entry.property):
                plugins.check_custom_settings(entry.settings, where)
                plugins.custom_path(entry.property, base, where)
            else:
                plugins.check_settings("nucleate.properties", entry.property, entry.settings, where)
