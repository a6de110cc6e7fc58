"""The whole job: fine-tune a model, judge it against its base, write what it found.

What the command line does is here, callable from Python::

    import nucleate

    run = nucleate.tune("stability", overrides=["budget.evaluations=10000"])
    policy = nucleate.load_policy(run / "model")
    crystals = nucleate.sample(policy, 100, seed=1)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError

from nucleate.algorithms.loop import Loop
from nucleate.allocator import keep_memory
from nucleate.config import dotted
from nucleate.errors import CheckpointError, NucleateError
from nucleate.evaluation import compare as comparison
from nucleate.evaluation.best import RUN, best_of_run, select_best, write_best
from nucleate.evaluation.judge import Energies, hull_cards, judge
from nucleate.evaluation.outcome import (
    as_scored,
    compare_outcomes,
    outcome,
    rewarded,
    write_front,
)
from nucleate.execution.local import PooledPotential, ProcessPool, available_cores
from nucleate.execution.settings import ClusterSettings
from nucleate.objectives.dry_run import CRYSTALS, dry_run
from nucleate.objectives.objective import Objective
from nucleate.physics.hull import DEFAULT_HULL, Hull
from nucleate.physics.potentials import get_potential
from nucleate.policies.checkpoint import (
    WEIGHTS,
    load_policy,
    resolve,
    save_policy,
    sha256,
)
from nucleate.policies.condition import Condition, smallest_cell
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.properties.stability import EnergyAboveHull
from nucleate.protocols import Potential
from nucleate.readiness import checked, find_device
from nucleate.recipe import (
    STABILITY,
    Recipe,
    load_recipe,
)
from nucleate.report.data import CRYSTALS_FOLDER, EVALUATION_FOLDER
from nucleate.report.page import build_report
from nucleate.screen.screen import Screen
from nucleate.screen.settings import StableStage
from nucleate.store.cache import EvaluationCache
from nucleate.store.packing import unpack_batch
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.validity import check_all
from nucleate.structures.wyckoff import WyckoffBatch, decode

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from nucleate.evaluation.summary import Evaluation
    from nucleate.evaluation.sun import KnownCrystals
    from nucleate.execution.cluster import ClusterPool

FORMULAS = "formulas.npy"
MODEL_FOLDER = "model"
CLUSTER_FOLDER = "cluster"
SAMPLE_CHUNK = 250
JUDGING_SEEDS = 1_000_003
"""Added to the seeds of judging, so that they are not those of tuning."""
DRY_RUN_SEEDS = 2_000_003
"""Added to the seed of the dry run, likewise."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Crystals drawn from a policy, order kept.

    Attributes:
        batch: the tokens.
        structures: primitive cells, None where decoding failed.
        reasons: why it failed, empty where it did not.
        log_prob: (B,) nats.
        digests: content hashes; equal hashes mean equal crystals.
    """

    batch: WyckoffBatch
    structures: list[Structure | None]
    reasons: list[str]
    log_prob: np.ndarray
    digests: list[str]


def sample(
    policy: WyckoffPolicy, n: int, condition: Condition | None = None, *, seed: int = 0
) -> Samples:
    """Draw ``n`` crystals.

    Args:
        policy: see :func:`nucleate.policies.checkpoint.load_policy`.
        n: how many.
        condition: what is fixed; by default the space groups of the training data, no
            radioactive elements and at most 20 atoms in the primitive cell.
        seed: equal seeds give equal crystals.
    """
    condition = condition or default_condition(policy)
    generator = torch.Generator().manual_seed(seed)
    rollouts = [
        policy.sample(min(SAMPLE_CHUNK, n - start), condition, generator)
        for start in range(0, n, SAMPLE_CHUNK)
    ]
    batch = WyckoffBatch.concatenate([rollout.batch for rollout in rollouts])
    structures, reasons = decode(batch)
    log_prob = torch.cat([rollout.log_prob for rollout in rollouts]).numpy()
    digests = [batch.digest(i) for i in range(n)]
    return Samples(batch, structures, reasons, log_prob, digests)


def default_condition(policy: WyckoffPolicy) -> Condition:
    """Space groups of the training data, no radioactive elements."""
    return condition_from_recipe(Recipe(), policy)


def condition_from_recipe(recipe: Recipe, policy: WyckoffPolicy) -> Condition:
    """What a recipe's ``condition`` section means for a policy."""
    settings = recipe.condition
    if settings.space_groups == "training":
        fits = smallest_cell() <= settings.max_atoms
        weights = np.where(fits, policy.training_space_groups(), 0.0)
    else:
        weights = np.zeros(231)
        weights[list(settings.space_groups)] = 1.0
    elements = np.zeros(119, dtype=bool)
    elements[settings.elements.numbers()] = True
    return Condition(
        weights,
        elements,
        max_atoms=settings.max_atoms,
        temperature=settings.temperature,
        coordinate_temperature=settings.coordinate_temperature,
        top_p=settings.top_p,
    )


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
            f"copy {FORMULAS} from the folder of the base model",
        )
    return FormulaIndex.load(path, str(policy.metadata.get("data", "training set")))


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
            before the first step.
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
        judges = _judges(recipe, objective, screen, potential)
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
        sets = _judge_both(recipe, run, (base, policy), judges, energies, known, drawn, say)
        if objective.crystals:  # their digests are those of the crystals before the relaxation
            energies = Energies(judges[0], cache=cache)
        _write_best(recipe, run, objective, judges, energies, known, sets, say)
        if loop.front is not None:
            write_front(objective, run.path / CRYSTALS_FOLDER)
        drawn.close()
        objective.close()
    if recipe.output.report:
        say(f"report: {build_report(run.path)}")


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


def _judges(
    recipe: Recipe, objective: Objective, screen: Screen, potential: PooledPotential
) -> list[EnergyAboveHull]:
    """What judges the models: the objective's potential and hull first, then further hulls.

    Where the objective has none, they are those of the screen, then the default ones.

    Whether it relaxes is a setting of its own.
    """
    settings = recipe.evaluation
    named = objective.properties.get(STABILITY)
    measured = [named, *objective.properties.values(), screen.judge]
    asked = next((p for p in measured if isinstance(p, EnergyAboveHull)), None)
    hulls: list[Hull | str] = [asked.hull if asked else DEFAULT_HULL, *settings.hulls]
    judges = [
        EnergyAboveHull(
            asked.potential if asked else potential,
            hull,
            relax=settings.relax,
            correct=asked.correct if asked else False,
        )
        for hull in hulls
    ]
    hull_cards(judges)  # two hulls of one name are found before the work
    return judges


def _judge_both(
    recipe: Recipe,
    run: RunDirectory,
    policies: tuple[WyckoffPolicy, WyckoffPolicy],
    judges: Sequence[EnergyAboveHull],
    energies: Energies,
    known: KnownCrystals,
    objective: Objective,
    say: Callable[[str], None],
) -> list[Evaluation]:
    """Base against tuned at equal sample count.

    Returns:
        The judged sets of the tuned model, with rewards where they are known.
    """
    settings, held = recipe.evaluation, recipe.condition
    if settings.coordinate_temperature is not None:
        changed = {"coordinate_temperature": settings.coordinate_temperature}
        held = held.model_copy(update=changed)
    evaluations: dict[str, list[Evaluation]] = {"base": [], "tuned": []}
    outcomes: dict[str, list[pd.DataFrame]] = {"base": [], "tuned": []}
    wanted = min(settings.objective_samples, settings.samples)
    if set(objective.properties) == {STABILITY} and not objective.filters:
        wanted = 0
    folder = run.path / EVALUATION_FOLDER
    condition = condition_from_recipe(recipe.model_copy(update={"condition": held}), policies[0])
    for seed in settings.seeds:
        for name, policy in zip(("base", "tuned"), policies, strict=True):
            say(f"judging {settings.samples} crystals of the {name} model, seed {seed}")
            drawn = sample(policy, settings.samples, condition, seed=JUDGING_SEEDS + seed)
            evaluation = judge(
                drawn,
                judges[0],
                hulls=judges[1:],
                energies=energies,
                reference=known,
                name=f"{name}-{seed}",
                stable_below=settings.stable_below,
                extra={"seed": seed, "condition": held.model_dump(mode="json")},
            )
            comparison.write_evaluation(evaluation, folder)
            evaluations[name].append(evaluation)
            if wanted:
                say(f"the objective on {wanted} crystals of the {name} model, seed {seed}")
                table = outcome(objective, drawn, wanted)
                comparison.write_table(table, folder / f"objective-{name}-{seed}.csv")
                outcomes[name].append(table)
    compared = comparison.compare(evaluations["base"], evaluations["tuned"])
    if wanted:
        tables = [evaluation.table for evaluation in evaluations["tuned"]]
        compared["objective"] = compare_outcomes(
            objective, outcomes["base"], outcomes["tuned"], tables
        )
    comparison.write_comparison(compared, folder)
    say(f"base against tuned: {folder / comparison.RESULTS_MARKDOWN}")
    return rewarded(objective, judges[0], evaluations["tuned"], outcomes["tuned"])


def _write_best(
    recipe: Recipe,
    run: RunDirectory,
    objective: Objective,
    judges: Sequence[EnergyAboveHull],
    energies: Energies,
    known: FormulaIndex,
    samples: Sequence[Evaluation],
    say: Callable[[str], None],
) -> None:
    """The best crystals of all that the run evaluated and of the judged samples, as files.

    Those of the run are judged as the samples were, for the same columns. ``energies`` are those of
    crystals as the objective was given them; ``samples`` are judged sets with rewards.
    """
    stability = STABILITY if STABILITY in objective.properties else ""
    if not stability and recipe.screen.stage(StableStage) is not None:
        stability = "stable"
    limit, below = recipe.output.best, recipe.evaluation.stable_below
    found = best_of_run(objective, known, limit, stability=stability, stable_below=below)
    sets = list(samples)
    if digests := found.table["digest"].tolist():
        crystals = Samples(
            unpack_batch(objective.store.tokens(digests)),
            list(as_scored(objective, digests)),
            [""] * len(digests),
            found.table["log_prob"].to_numpy(),
            digests,
        )
        judged = judge(
            crystals,
            judges[0],
            hulls=judges[1:],
            energies=energies,
            reference=known,
            name=RUN,
            stable_below=below,
        )
        origin = {name: found.table[name].to_numpy() for name in ("sample", "step", "reward")}
        relaxed = recipe.evaluation.relax or bool(objective.crystals)
        sets.insert(0, replace(judged, table=judged.table.assign(**origin, relaxed=relaxed)))
    best = select_best(sets, limit, stable=bool(stability))
    write_best(best, run.path / CRYSTALS_FOLDER)
    n = sum(len(evaluation.table) for evaluation in samples)
    looked_at = {"evaluated": found.evaluated, "new_formulas": found.new, "samples": n}
    run.update_manifest(best=looked_at | {"stable": bool(stability)})
    of_run = sum(row["set"] == RUN for row in best.rows)
    say(
        f"best crystals: {of_run} of the {found.evaluated:,} that the run evaluated, "
        f"{len(best) - of_run} of the {n:,} judged samples"
    )
