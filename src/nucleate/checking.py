"""Can this recipe run: all that can be verified before a run, and, if asked, a dry run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ase.data import chemical_symbols

from nucleate import design, readiness
from nucleate.doctor import Check, Level, writable
from nucleate.errors import NucleateError
from nucleate.objectives.dry_run import dry_run
from nucleate.objectives.explain import TYPICAL, Part, explain
from nucleate.objectives.objective import Objective
from nucleate.physics.hull import DEFAULT_HULL, Hull
from nucleate.physics.potentials import get_potential
from nucleate.policies.checkpoint import load_policy, resolve
from nucleate.properties.stability import EnergyAboveHull
from nucleate.recipe import Recipe, load_recipe
from nucleate.samples import condition_from_recipe
from nucleate.screen.settings import TRAINING, NovelStage, RelaxedStage, StableStage
from nucleate.structures.identity import ReferenceSet

if TYPE_CHECKING:
    from nucleate.policies.wyckoff import WyckoffPolicy

STATES = 13
"""Copies of the weights that a run holds on disk at most: three checkpoints with the weights, two
moments and their average, and the tuned model."""
CRYSTAL_BYTES = 2_000
"""What a crystal takes in the store, with its evaluations."""
UNKNOWN_CRYSTALS = 200_000
"""Assumed where the budget does not say how many crystals are drawn."""


def explain_objective(recipe: str | Path, overrides: Sequence[str] = ()) -> list[Part]:
    """Each filter and term of a recipe's objective; see :func:`nucleate.objectives.explain`.

    Raises:
        RecipeError: an unknown key, property or setting, or a value out of range.
        InputError: no such recipe.
    """
    return list(explain(load_recipe(recipe, overrides).objective))


def check(
    recipe: str | Path | Recipe, overrides: Sequence[str] = (), *, trial: bool = False
) -> Iterator[Check]:
    """All checks of a recipe, one after another; a problem does not hide the next.

    Args:
        recipe: name of a built-in recipe, a YAML file, or a recipe.
        overrides: such as ``budget.steps=20``.
        trial: evaluate the objective on a few crystals too, as a run does when it begins.

    Raises:
        RecipeError: an unknown key, property or setting, or a value out of range.
        InputError: no such recipe.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    yield Check("recipe", Level.OK, f"{recipe.name}; ends after {_ends(recipe)}")
    checks = [
        _attempt("device", lambda: readiness.find_device(recipe.device)),
        _attempt("novelty bonus", lambda: _bonus(recipe)),
        _attempt("limits", lambda: _limits(recipe)),
        _attempt("screen", lambda: _screen(recipe)),
        _attempt("workers", lambda: _workers(recipe)),
        _attempt("cache", lambda: _cache(recipe)),
        _attempt("tensorboard", lambda: _tensorboard(recipe)),
    ]
    yield from checks
    policies: list[WyckoffPolicy] = []

    def model() -> str:
        folder = resolve(recipe.model.checkpoint)
        policies.append(load_policy(folder))
        known = design.training_formulas(policies[0], folder)
        size = sum(p.numel() for p in policies[0].network.parameters())
        return f"{folder.name}, {size / 1e6:.1f} million weights, {len(known):,} training formulas"

    checks.append(_attempt("model", model))
    yield checks[-1]
    if (prior := recipe.model.prior) is not None:
        checks.append(_attempt("prior", lambda: str(load_policy(prior).metadata["weights_sha256"])))
        yield checks[-1]
    if policies:
        checks.append(_attempt("condition", lambda: _condition(recipe, policies[0])))
        yield checks[-1]
    for part in explain(recipe.objective):
        level = Level.PROBLEM if part.missing else Level.OK
        checks.append(Check(f"{part.kind} {part.name}", level, part.missing or _told(part)))
        yield checks[-1]
    yield from _hulls(recipe)
    output = [_folder(recipe), _disk(recipe, policies)]
    yield from output
    if not trial:
        return
    if any(entry.level is Level.PROBLEM for entry in checks):
        yield Check("dry run", Level.NOTE, "left out until the problems above are mended")
        return
    yield from _dry_run(recipe, policies[0])


def _attempt(name: str, work: Callable[[], str | None]) -> Check:
    """What the work found, or the problem that it met."""
    try:
        return Check(name, Level.OK, work() or "yes")
    except NucleateError as error:
        return Check(name, Level.PROBLEM, error.sentence)


def _ends(recipe: Recipe) -> str:
    budget = recipe.budget
    limits = (
        (budget.steps, "steps"),
        (budget.evaluations, "evaluations"),
        (budget.minutes, "minutes"),
    )
    return " or ".join(f"{limit:,g} {unit}" for limit, unit in limits if limit is not None)


def _bonus(recipe: Recipe) -> str:
    readiness.check_bonus(recipe)
    return f"{recipe.algorithm.novelty_bonus:g}"


def _limits(recipe: Recipe) -> str:
    readiness.check_limits(recipe)
    return ", ".join(f"{n:,} of {name}" for name, n in recipe.budget.limits.items()) or "none"


def _screen(recipe: Recipe) -> str:
    stages = [readiness.with_paths(stage) for stage in recipe.screen.stages]
    for stage in stages:
        if isinstance(stage, RelaxedStage):
            get_potential(recipe.screen.potential)
        elif isinstance(stage, StableStage):
            EnergyAboveHull(recipe.screen.potential, stage.hull, correct=stage.correct)
        elif isinstance(stage, NovelStage) and stage.reference != TRAINING:
            ReferenceSet.open(stage.reference)
    return ", ".join(stage.type for stage in stages)


def _workers(recipe: Recipe) -> str:
    if recipe.cluster is None:
        return "processes of this machine"
    from nucleate.execution.cluster import check_cluster

    check_cluster(recipe.cluster, recipe.output.directory)
    return f"jobs of {recipe.cluster.scheduler}"


def _cache(recipe: Recipe) -> str:
    return str(readiness.check_cache(recipe) or "none")


def _tensorboard(recipe: Recipe) -> str:
    readiness.check_tensorboard(recipe)
    return str(recipe.output.tensorboard).lower()


def _condition(recipe: Recipe, policy: WyckoffPolicy) -> str:
    """Draws a few crystals under the condition."""
    condition = condition_from_recipe(recipe, policy)
    valid = design.trial_crystals(recipe, policy)[0]
    groups, elements = (condition.space_groups > 0).sum(), condition.elements.sum()
    drawn = "valid crystals are drawn" if valid else "none of the crystals drawn is valid"
    return f"{groups} space groups, {elements} elements, {condition.max_atoms} atoms; {drawn}"


def _told(part: Part) -> str:
    cost = "" if part.cost is None else f"; {part.cost.value}, {TYPICAL[part.cost]} a crystal"
    unit = f" {part.unit}" if part.unit else ""
    return f"{part.wanted}{unit if part.kind == 'filter' else ''}{cost}"


def _hulls(recipe: Recipe) -> Iterator[Check]:
    """Reference hulls can be read and know the elements that may be drawn."""
    asked = [
        str(entry.settings.get("hull", DEFAULT_HULL))
        for entry in recipe.objective.properties
        if readiness.takes_hull(entry.property)
    ]
    if (stable := recipe.screen.stage(StableStage)) is not None:
        asked.append(stable.hull)
    allowed = [chemical_symbols[number] for number in recipe.condition.elements.numbers()]
    for name in dict.fromkeys([*(asked or [DEFAULT_HULL]), *recipe.evaluation.hulls]):
        try:
            hull = Hull.load(name)
        except NucleateError as error:
            yield Check(f"hull {name}", Level.PROBLEM, error.sentence)
            continue
        unknown = [symbol for symbol in allowed if symbol not in set(hull.elements)]
        if unknown:
            detail = f"lacks {', '.join(unknown)}: no crystal with them has an energy above it"
            yield Check(f"hull {name}", Level.NOTE, detail)
        else:
            yield Check(f"hull {name}", Level.OK, f"{len(hull):,} phases, all elements allowed")


def _folder(recipe: Recipe) -> Check:
    output = recipe.output
    folder = Path(output.directory)
    if output.name is not None and (folder / output.name).exists():
        detail = f"{folder / output.name} exists already; choose another output.name"
        return Check("output", Level.PROBLEM, detail)
    place = _existing(folder)
    if not place.is_dir():
        detail = f"{place} is a file where a folder is needed; choose another output.directory"
        return Check("output", Level.PROBLEM, detail)
    return writable(place)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _disk(recipe: Recipe, policies: Sequence[WyckoffPolicy]) -> Check:
    weights = sum(p.numel() * 4 for policy in policies for p in policy.network.parameters())
    budget = recipe.budget
    drawn = [
        n
        for n in (budget.steps and budget.steps * budget.batch_size, budget.evaluations)
        if n is not None
    ]
    needed = STATES * weights + CRYSTAL_BYTES * min(drawn, default=UNKNOWN_CRYSTALS)
    free = shutil.disk_usage(_existing(Path(recipe.output.directory))).free
    detail = f"{free / 1e9:.1f} GB free, about {needed / 1e9:.2g} GB needed"
    return Check("disk", Level.OK if free > needed else Level.PROBLEM, detail)


def _dry_run(recipe: Recipe, policy: WyckoffPolicy) -> Iterator[Check]:
    """The objective on a few crystals, with the worker processes of a run."""
    with design.potential_pool(workers=recipe.workers) as potential:
        objective = Objective.from_settings(
            recipe.objective, resources={"potential": potential, "pool": potential.pool}
        )
        try:
            trials = dry_run(objective, *design.trial_crystals(recipe, policy))
        except NucleateError as error:
            yield Check("dry run", Level.PROBLEM, error.sentence)
            return
        finally:
            objective.close()
    for trial in trials:
        yield Check("dry run", Level.OK if trial.ok else Level.NOTE, str(trial))
