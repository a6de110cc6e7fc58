"""The whole job: fine-tune a model, judge it against its base, write what it found.

What the command line does is here, callable from Python::

    import nucleate

    run = nucleate.tune("stability", overrides=["budget.evaluations=10000"])
    policy = nucleate.load_policy(run / "model")
    crystals = nucleate.sample(policy, 100, seed=1)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from nucleate.algorithms.loop import Loop
from nucleate.allocator import keep_memory
from nucleate.config import dotted
from nucleate.errors import CheckpointError, NucleateError, UnscoredError, counted
from nucleate.evaluation.judge import Energies
from nucleate.evaluation.outcome import write_front
from nucleate.execution.local import PooledPotential, ProcessPool, available_cores
from nucleate.execution.settings import ClusterSettings
from nucleate.objectives.dry_run import CRYSTALS, dry_run
from nucleate.objectives.objective import Objective
from nucleate.physics.potentials import get_potential
from nucleate.policies.checkpoint import (
    FORMULAS,
    WEIGHTS,
    load_policy,
    resolve,
    save_policy,
    sha256,
)
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.protocols import Potential, Status
from nucleate.readiness import checked, find_device
from nucleate.recipe import Recipe, load_recipe
from nucleate.report.data import CRYSTALS_FOLDER
from nucleate.report.page import build_report
from nucleate.results import judge_both, judges_of, write_best_crystals
from nucleate.samples import condition_from_recipe, sample
from nucleate.screen.screen import Screen
from nucleate.store.cache import EvaluationCache
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.validity import check_all

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.execution.cluster import ClusterPool
    from nucleate.store.experience import ExperienceStore

MODEL_FOLDER = "model"
CLUSTER_FOLDER = "cluster"
DRY_RUN_SEEDS = 2_000_003
"""Added to the seed of the dry run, so that its crystals are not those of tuning."""

logger = logging.getLogger(__name__)


def training_formulas(policy: WyckoffPolicy, folder: Path) -> FormulaIndex:
    """Formulas of the data that a policy learnt from; they lie beside its weights.

    Raises:
        CheckpointError: the folder has none.
    """
    path = folder / FORMULAS
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {FORMULAS}",
            "novelty is measured against the formulas that the policy was trained on",
            f"copy {FORMULAS} from the folder of the model it comes from; a published checkpoint "
            "gets one by nucleate import with --data",
        )
    return FormulaIndex.load(path, f"formulas of {policy.metadata.get('data', 'the training set')}")


# tuning -------------------------------------------------------------------------------------


@contextmanager
def potential_pool(
    name: str = "chgnet",
    workers: int = 0,
    *,
    cluster: ClusterSettings | None = None,
    folder: Path = Path(CLUSTER_FOLDER),
) -> Iterator[PooledPotential]:
    """A potential in many processes that each hold a copy of it.

    Args:
        name: of the potential.
        workers: processes of this machine; 0 for one on each core.
        cluster: batch jobs to take instead.
        folder: for the files of those jobs.
    """
    pool: ProcessPool | ClusterPool
    if cluster is None:
        pool = ProcessPool(workers or None, potential=name)
    else:
        from nucleate.execution.cluster import ClusterPool

        pool = ClusterPool(cluster, folder, potential=name)
    with pool:
        yield PooledPotential(name, pool)


def tune(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_run: Callable[[Path], None] | None = None,
) -> Path:
    """Start a run.

    Args:
        recipe: name of a built-in recipe, a YAML file, or a recipe.
        overrides: such as ``budget.steps=20``.
        on_step: called with the metrics of each step.
        on_stage: called with a line for each stage of the job.
        on_run: called with the run's folder as soon as there is one; it can be resumed from then.

    Returns:
        The run's folder, with the model, crystals, tables and report in it.

    Raises:
        NucleateError: what the recipe asks for can't work. No folder is left if that was found
            before the first step, but for one with the files of a cluster's jobs.
        UnscoredError: no crystal could be scored; the run's folder says why.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    recipe = checked(recipe)
    _check_models(recipe)
    run = RunDirectory.create(
        recipe.output.directory,
        recipe.output.name or recipe.name,
        recipe.model_dump(mode="json"),
        unique=recipe.output.name is None,
        seeds={"tuning": recipe.seed},
        files=_files(recipe),
    )
    with run:
        if on_run is not None:
            on_run(run.path)
        try:
            _tune(recipe, run, on_step, on_stage)
        except NucleateError:
            run.discard_unused()
            raise
    return run.path


def resume(
    path: str | Path,
    *,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Go on with a run that was stopped, from its newest checkpoint.

    Raises:
        CheckpointError: no run there, another process writes it, or a model or property that it
            started from has changed since.
        RecipeError: its device is not there.
    """
    recipe = recipe_of_run(path)
    find_device(recipe.device)
    known = RunDirectory.open(path, read_only=True).manifest().get("files", {})
    for role, file in _files(recipe).items():
        found = sha256(file) if file.is_file() else "missing"
        expected = known.get(role, {}).get("sha256", found)
        if found != expected:
            raise CheckpointError(
                f"the {role} {file} is not the one this run started from",
                f"its sha256 is {found[:12]}, the manifest says {expected[:12]}",
                "restore the file, or start a new run",
            )
    with RunDirectory.open(path) as run:
        _tune(recipe, run, on_step, on_stage)
    return Path(path)


def recipe_of_run(path: str | Path) -> Recipe:
    """The recipe that a run was started with.

    Raises:
        CheckpointError: no run there, or one of another release.
    """
    with RunDirectory.open(path, read_only=True) as run:
        try:
            return Recipe.model_validate(run.manifest()["recipe"])
        except (KeyError, ValidationError) as error:
            why = "its manifest holds none"
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                why = ": ".join(filter(None, (dotted(first["loc"]), first["msg"])))
            raise CheckpointError(
                f"the recipe of the run {path} can't be used",
                why,
                "go on with the release that wrote it, or start a new run",
            ) from error


def _check_models(recipe: Recipe) -> None:
    """Load the models that a run starts from, before a folder is made."""
    policy = load_policy(recipe.model.checkpoint)
    training_formulas(policy, resolve(recipe.model.checkpoint))
    condition_from_recipe(recipe, policy)
    if recipe.model.prior is not None:
        load_policy(recipe.model.prior)


def _files(recipe: Recipe) -> dict[str, Path]:
    """The files that a run starts from, by role; a prior only if it is another model."""
    folder = resolve(recipe.model.checkpoint)
    files = {"model": folder / WEIGHTS, "formulas": folder / FORMULAS}
    if recipe.model.prior is not None:
        files["prior"] = resolve(recipe.model.prior) / WEIGHTS
    return files


def _tune(
    recipe: Recipe,
    run: RunDirectory,
    on_step: Callable[[dict[str, Any]], None] | None,
    on_stage: Callable[[str], None] | None,
) -> None:
    say = on_stage or logger.info
    keep_memory()
    device = find_device(recipe.device)
    folder = resolve(recipe.model.checkpoint)
    base = load_policy(folder, device=device)
    policy = load_policy(folder, device=device)
    prior = base if recipe.model.prior is None else load_policy(recipe.model.prior, device=device)
    known = training_formulas(policy, folder)
    condition = condition_from_recipe(recipe, policy)
    jobs = run.path / CLUSTER_FOLDER
    with (
        _cache(recipe, run) as cache,
        potential_pool(workers=recipe.workers, cluster=recipe.cluster, folder=jobs) as potential,
        run.store() as store,
    ):
        # threads beyond the cores that the workers leave only wait for one another
        torch.set_num_threads(max(1, available_cores() - potential.pool.workers_here))
        screen = Screen(
            recipe.screen,
            store,
            cache,
            potential=_screening(recipe.screen.potential, potential),
            training=known,
        )
        objective = Objective.from_settings(
            recipe.objective,
            store,
            cache,
            resources={"potential": potential, "pool": potential.pool},
            crystals=screen.handed_on,
        )
        keys = {name: p.key for name, p in objective.properties.items()} | {
            f"screen: {name}": key for name, key in screen.keys.items()
        }
        _check_properties(run, keys)
        judges = judges_of(recipe, objective, screen, potential)
        loop = Loop(
            recipe, policy, prior, objective, screen, condition, known, run, on_step=on_step
        )
        done = loop.restore()
        run.update_manifest(
            prior=prior.metadata["weights_sha256"],
            properties=keys,
            stability=judges[0].description,
        )
        if not done:
            say("dry run of the objective")
            for trial in dry_run(objective, *trial_crystals(recipe, base)):
                say(f"  {trial}")
        say(f"tuning from step {done}" if done else "tuning")
        reason = loop.run()
        loop.algorithm.use_average()
        screen.close()
        say(f"tuning ended: {reason}")
        run.update_manifest(ended=reason, spent=[asdict(entry) for entry in store.spending()])
        if loop.step and not loop.answered:
            raise _unscored(run, store)
        tuned = {
            "run": run.path.name,
            "steps": loop.step,
            "from": policy.metadata.pop("weights_sha256"),
        }
        policy.metadata["tuned"] = tuned
        save_policy(policy, run.path / MODEL_FOLDER)
        known.save(run.path / MODEL_FOLDER / FORMULAS)
        energies = Energies(judges[0], store, cache)
        drawn = objective.as_drawn()
        sets = judge_both(recipe, run, (base, policy), judges, energies, known, drawn, say)
        if objective.crystals:  # their digests are those of the crystals before the relaxation
            energies = Energies(judges[0], cache=cache)
        write_best_crystals(recipe, run, objective, judges, energies, known, sets, say)
        if loop.front is not None:
            write_front(objective, run.path / CRYSTALS_FOLDER)
        drawn.close()
        objective.close()
    if recipe.output.report:
        say(f"report: {build_report(run.path)}")


def _unscored(run: RunDirectory, store: ExperienceStore) -> UnscoredError:
    """The error of a run that never had a score, nor the no of a filter, with what it met most."""
    table = store.crystals()
    ends = list(zip(table["status"], table["reason"], strict=True))
    kinds = Counter((status, reason.partition(":")[0]) for status, reason in ends)
    unasked = (Status.INVALID.value, Status.FILTERED.value)
    asked = {kind: n for kind, n in kinds.items() if kind[0] not in unasked}
    ((kind, count),) = Counter(asked or kinds).most_common(1)
    first = next(f"{s}: {reason}" for s, reason in ends if (s, reason.partition(":")[0]) == kind)
    return UnscoredError(
        f"No crystal of the run {run.path} could be scored.",
        f"The most frequent reason, of {count:,} of {counted(len(ends), 'crystal')}: {first}",
        "Mend the recipe or what its properties need, try it with nucleate check --dry-run, and "
        f"start a new run. All reasons: nucleate report {run.path}",
    )


def _cache(recipe: Recipe, run: RunDirectory) -> AbstractContextManager[EvaluationCache | None]:
    """What the runs of this folder share, if the recipe says so."""
    name = recipe.output.cache
    return nullcontext() if name is None else run.cache(name)


def _screening(spec: str | dict[str, Any], potential: PooledPotential) -> Potential:
    """The screen's potential on the workers; one of another interpreter has its own."""
    if spec == potential.name:
        return potential
    if isinstance(spec, dict) and spec.get("python") is not None:
        return get_potential(spec)
    return PooledPotential(spec, potential.pool)


def trial_crystals(recipe: Recipe, policy: WyckoffPolicy) -> tuple[list[Structure], list[str]]:
    """A few valid crystals of the kind that a run will draw, and their digests."""
    condition = condition_from_recipe(recipe, policy)
    drawn = sample(policy, 8 * CRYSTALS, condition, seed=DRY_RUN_SEEDS + recipe.seed)
    reasons = check_all(drawn.structures)
    valid = {
        digest: structure
        for digest, structure, why in zip(drawn.digests, drawn.structures, reasons, strict=True)
        if structure is not None and not why
    }
    return list(valid.values())[:CRYSTALS], list(valid)[:CRYSTALS]


def _check_properties(run: RunDirectory, keys: Mapping[str, str]) -> None:
    """Refuse to go on with properties other than those that the run began with.

    Raises:
        CheckpointError: a hull, a potential or a function has changed since.
    """
    before = run.manifest().get("properties", {})
    for name, key in keys.items():
        if before.get(name, key) != key:
            raise CheckpointError(
                f"the property {name!r} is not the one this run started with",
                f"it was {before[name]}, and is {key}",
                "restore the hull, potential, function or version of nucleate, or start a new run",
            )
