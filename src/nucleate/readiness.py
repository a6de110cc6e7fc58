"""What a recipe asks for is there: the checks that a run begins with, before its folder is made.

``nucleate check`` makes the same ones, one by one.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from nucleate import plugins
from nucleate.errors import InputError, MissingDependencyError, RecipeError, did_you_mean
from nucleate.objectives.settings import PropertySettings
from nucleate.physics.hull import Hull
from nucleate.physics.hull_card import SHIPPED as SHIPPED_HULLS
from nucleate.physics.hull_card import locate
from nucleate.policies.checkpoint import SHIPPED, resolve
from nucleate.protocols import CostClass
from nucleate.recipe import STABILITY, Recipe, with_absolute_paths
from nucleate.screen.settings import TRAINING, NovelStage, RelaxedStage, StableStage, Stage
from nucleate.store.cache import EvaluationCache


def checked(recipe: Recipe) -> Recipe:
    """The recipe with the paths of models and hulls spelt out, so that it is resumed anywhere.

    What can't work is refused here, before a folder is made.

    Raises:
        NucleateError: what the recipe asks for is not there, or can't be used.
    """
    recipe = with_absolute_paths(recipe, f"recipe {recipe.name!r}")
    find_device(recipe.device)
    check_bonus(recipe)
    check_limits(recipe)
    check_tensorboard(recipe)
    if recipe.cluster is not None:
        from nucleate.execution.cluster import check_cluster

        check_cluster(recipe.cluster, recipe.output.directory)
    check_cache(recipe)
    stages = [with_paths(stage) for stage in recipe.screen.stages]
    hulls = tuple(_hull(name) for name in recipe.evaluation.hulls)
    paths = {
        "checkpoint": _model(recipe.model.checkpoint),
        "prior": None if recipe.model.prior is None else _model(recipe.model.prior),
    }
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=paths),
            "objective": recipe.objective.updated(_hull_of),
            "evaluation": recipe.evaluation.model_copy(update={"hulls": hulls}),
            "screen": recipe.screen.model_copy(update={"stages": tuple(stages)}),
        }
    )
    return recipe


def find_device(name: str) -> str:
    """The device of this name; for "auto" a CUDA device where there is one, else the processor.

    Raises:
        RecipeError: torch sees no such device.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if cuda else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not int(number or 0) < cuda:
        seen = f"{cuda} CUDA device{'s' * (cuda != 1)}" if cuda else "no CUDA device"
        raise RecipeError(f"device {name!r} is not there", f"torch sees {seen}", "use device: auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(
            f"device {name!r} is not there", "torch sees no Apple GPU", "use device: auto"
        )
    return name


def check_cache(recipe: Recipe) -> Path | None:
    """Where evaluations are shared, None for nowhere; it can be read if it is there.

    Raises:
        CheckpointError: the file is something else.
        InputError: it is a folder.
    """
    if recipe.output.cache is None:
        return None
    cache = Path(recipe.output.directory) / recipe.output.cache
    if cache.is_dir():
        raise InputError(
            f"{cache} is a folder where a file is needed",
            fix="Name a file of evaluations as output.cache, or null to share none.",
        )
    if cache.exists():
        EvaluationCache(cache).close()
    return cache


def with_paths(stage: Stage) -> Stage:
    """A stage of the screen with the paths of hull and reference spelt out.

    Raises:
        InputError: there is no such hull or reference.
    """
    if isinstance(stage, StableStage):
        return stage.model_copy(update={"hull": _hull(stage.hull)})
    if isinstance(stage, NovelStage) and stage.reference != TRAINING:
        path = Path(stage.reference).resolve()
        if not path.exists():
            raise InputError(
                f"there is no reference {stage.reference} to be novel against",
                fix="Name prepared data, a saved reference set or a file of crystals, or "
                f"'{TRAINING}' for the formulas that the model was trained on.",
            )
        return stage.model_copy(update={"reference": str(path)})
    return stage


def check_tensorboard(recipe: Recipe) -> None:
    """Check that TensorBoard is installed where the recipe demands it.

    Raises:
        MissingDependencyError: it isn't.
    """
    if recipe.output.tensorboard is True and find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "output.tensorboard is true, but TensorBoard is not installed",
            fix='pip install "nucleate[track]", or set output.tensorboard to auto',
        )


def _hull_of(entry: PropertySettings) -> dict[str, Any]:
    """Settings of a term or filter with the path of its hull spelt out."""
    hull = entry.settings.get("hull")
    if not takes_hull(entry.property) or not isinstance(hull, str):
        return {}
    return {"settings": entry.settings | {"hull": _hull(hull)}}


def takes_hull(name: str) -> bool:
    """Whether a property refers to a hull, by its setting of that name."""
    if plugins.is_custom(name):
        return False
    return "hull" in inspect.signature(plugins.load(plugins.PROPERTIES, name)).parameters


def _model(name: str) -> str:
    """Name of a shipped model, or the absolute path of another."""
    return name if name in SHIPPED else str(resolve(name).resolve())


def _hull(name: str) -> str:
    """Name of a shipped hull, or the absolute path of another, which is read to see if it can be.

    Raises:
        InputError: it can't.
    """
    Hull.load(name)
    return name if name in SHIPPED_HULLS else str(locate(name).resolve())


def check_bonus(recipe: Recipe) -> None:
    """Check that the bonus for stable crystals of new formulas can be earned.

    Raises:
        RecipeError: there is one, and nothing says which crystals are stable.
    """
    bonus = recipe.algorithm.novelty_bonus
    named = {entry.label for entry in recipe.objective.properties}
    screened = recipe.screen.stage(StableStage) is not None
    if bonus and not screened and STABILITY not in named:
        raise RecipeError(
            f"algorithm.novelty_bonus is {bonus:g}, but no crystal can earn it.",
            "It is for stable crystals, and the objective has no term or filter called "
            f"{STABILITY} and the screen no stage stable.",
            f"Set algorithm.novelty_bonus to 0, or add a term {STABILITY} to the objective.",
        )


def check_limits(recipe: Recipe) -> None:
    """Check that each limit of the budget is on something that the objective evaluates.

    Raises:
        RecipeError: a limit on something else.
    """
    asking = (RelaxedStage, StableStage)
    known = {cost.value for cost in CostClass}
    known |= {stage.type for stage in recipe.screen.stages if isinstance(stage, asking)}
    known |= {entry.label for entry in recipe.objective.properties}
    if any(e.property == "predicted" and e.name is None for e in recipe.objective.properties):
        return  # goes by the predictor's name
    for name in recipe.budget.limits:
        if name not in known:
            raise RecipeError(
                f"budget.limits: {name!r} is neither a cost class nor a property of the objective.",
                fix=did_you_mean(name, known),
            )
