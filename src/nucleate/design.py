"""The whole job: fine-tune a model, judge it against its base, write what it found.

What the command line does is here, callable from Python::

    import nucleate

    run = nucleate.tune("stability", overrides=["budget.evaluations=10000"])
    policy = nucleate.load_policy(run / "model")
    crystals = nucleate.sample(policy, 100, seed=1)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nucleate.algorithms.loop import Loop
from nucleate.allocator import keep_memory
from nucleate.errors import CheckpointError, MissingDependencyError, RecipeError
from nucleate.evaluation import compare as comparison
from nucleate.evaluation.best import Best, select_best, write_best
from nucleate.evaluation.summary import Evaluation, EvaluationSettings
from nucleate.evaluation.sun import KnownCrystals, evaluate_crystals
from nucleate.execution.local import PooledPotential, ProcessPool
from nucleate.objectives.objective import Objective
from nucleate.policies.checkpoint import SHIPPED, WEIGHTS, load_policy, resolve, save_policy
from nucleate.policies.condition import Condition
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.properties.stability import EnergyAboveHull
from nucleate.recipe import Recipe, load_recipe
from nucleate.report.data import CRYSTALS_FOLDER, EVALUATION_FOLDER
from nucleate.report.page import build_report
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.validity import check_all
from nucleate.structures.wyckoff import WyckoffBatch, decode

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.protocols import Scores

FORMULAS = "formulas.npy"
MODEL_FOLDER = "model"
SAMPLE_CHUNK = 250

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Crystals drawn from a policy, order kept.

    Attributes:
        batch: the tokens.
        structures: primitive cells, None where decoding failed.
        reasons: why it failed, empty where it did not.
        log_prob: (B,) nats.
    """

    batch: WyckoffBatch
    structures: list[Structure | None]
    reasons: list[str]
    log_prob: np.ndarray


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
    return Samples(batch, structures, reasons, log_prob)


def default_condition(policy: WyckoffPolicy) -> Condition:
    """Space groups of the training data, no radioactive elements."""
    return condition_from_recipe(Recipe.model_validate({"budget": {"steps": 1}}), policy)


def condition_from_recipe(recipe: Recipe, policy: WyckoffPolicy) -> Condition:
    """What a recipe's ``condition`` section means for a policy."""
    settings = recipe.condition
    if settings.space_groups == "training":
        weights = policy.training_space_groups()
    else:
        weights = np.zeros(231)
        weights[list(settings.space_groups)] = 1.0
    elements = np.zeros(119, dtype=bool)
    elements[settings.elements.numbers()] = True
    return Condition(
        weights,
        elements,
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


# judging ------------------------------------------------------------------------------------


def judge(
    samples: Samples,
    stability: EnergyAboveHull,
    *,
    hulls: Sequence[EnergyAboveHull] = (),
    reference: KnownCrystals | None = None,
    name: str = "samples",
    stable_below: float = 0.1,
    extra: dict[str, Any] | None = None,
) -> Evaluation:
    """Valid, stable, unique and novel fractions of samples.

    Args:
        samples: crystals.
        stability: the main judge.
        hulls: further judges with the same potential; they reuse its energies.
        reference: training set, for novelty.
        name: of the set.
        stable_below: eV/atom.
        extra: printed with the result.
    """
    invalid = check_all(samples.structures)
    rows = [i for i, why in enumerate(invalid) if not why]
    chosen = [s for s, why in zip(samples.structures, invalid, strict=True) if s and not why]
    energies = stability.energies(chosen)
    judged: dict[str, Scores] = {}
    cards = {}
    for judge_ in (stability, *hulls):
        scores = judge_.from_energies(chosen, energies)
        judged[judge_.hull.name] = _spread(scores, rows, invalid)
        cards[judge_.hull.name] = judge_.description
    settings = EvaluationSettings(
        stable_below=stable_below,
        potential=stability.potential.name,
        relaxed=stability.relax_settings is not None,
        hulls=cards,
        reference=str(getattr(reference, "source", "")) if reference else "",
        extra=extra or {},
    )
    return evaluate_crystals(
        samples.structures,
        samples.reasons,
        hulls=judged,
        tokens=samples.batch,
        reference=reference,
        invalid=invalid,
        settings=settings,
        name=name,
    )


def _spread(scores: Scores, rows: Sequence[int], invalid: Sequence[str]) -> Scores:
    """Scores of some rows as scores of all; the others are invalid for their reason."""
    from nucleate.protocols import Scores, Status

    n = len(invalid)
    value = np.full(n, np.nan)
    status, reason = [Status.INVALID] * n, list(invalid)
    extra = {key: np.full(n, np.nan) for key in scores.extra}
    for position, row in enumerate(rows):
        value[row] = scores.value[position]
        status[row], reason[row] = scores.status[position], scores.reason[position]
        for key, column in scores.extra.items():
            extra[key][row] = column[position]
    return Scores(value, status, reason, extra)


# tuning -------------------------------------------------------------------------------------


@contextmanager
def potential_pool(name: str = "chgnet", workers: int = 0) -> Iterator[PooledPotential]:
    """A potential on all cores: worker processes that each hold a copy of it.

    Args:
        name: of the potential.
        workers: processes; 0 for one on each core.
    """
    workers = workers or os.cpu_count() or 1
    with ProcessPool(workers, potential=name) as pool:
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
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    folder = _check_supported(recipe)
    if recipe.model.checkpoint not in SHIPPED:  # a run may be resumed from elsewhere
        model = recipe.model.model_copy(update={"checkpoint": str(folder.resolve())})
        recipe = recipe.model_copy(update={"model": model})
    run = RunDirectory.create(
        recipe.output.directory,
        recipe.output.name or recipe.name,
        recipe.model_dump(mode="json"),
        unique=recipe.output.name is None,
        seeds={"tuning": recipe.seed},
        files={"model": folder / WEIGHTS},
    )
    with run:
        if on_run is not None:
            on_run(run.path)
        _tune(recipe, run, on_step, on_stage)
    return run.path


def resume(
    path: str | Path,
    *,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Go on with a run that was stopped, from its newest checkpoint.

    Raises:
        CheckpointError: no run there, another process writes it, or the model it started from
            has changed since.
    """
    with RunDirectory.open(path) as run:
        manifest = run.manifest()
        recipe = Recipe.model_validate(manifest["recipe"])
        expected = manifest["files"]["model"]["sha256"]
        found = str(load_policy(recipe.model.checkpoint).metadata["weights_sha256"])
        if found != expected:
            raise CheckpointError(
                f"the model {recipe.model.checkpoint!r} is not the one this run started from",
                f"its sha256 is {found[:12]}..., the manifest says {expected[:12]}...",
                "restore the model, or start a new run",
            )
        _tune(recipe, run, on_step, on_stage)
    return Path(path)


def recipe_of_run(path: str | Path) -> Recipe:
    """The recipe that a run was started with.

    Raises:
        CheckpointError: no run there.
    """
    with RunDirectory.open(path, read_only=True) as run:
        return Recipe.model_validate(run.manifest()["recipe"])


def _check_supported(recipe: Recipe) -> Path:
    """Refuse what can't work before a folder is made; returns the model's folder."""
    _device(recipe.device)
    folder = resolve(recipe.model.checkpoint)
    policy = load_policy(folder)
    training_formulas(policy, folder)
    condition_from_recipe(recipe, policy)
    if recipe.model.prior is not None:
        load_policy(recipe.model.prior)
    if recipe.output.tensorboard is True and find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "output.tensorboard is true, but TensorBoard is not installed",
            fix='pip install "nucleate[track]", or set output.tensorboard to auto',
        )
    return folder


def _tune(
    recipe: Recipe,
    run: RunDirectory,
    on_step: Callable[[dict[str, Any]], None] | None,
    on_stage: Callable[[str], None] | None,
) -> None:
    say = on_stage or logger.info
    keep_memory()
    device = _device(recipe.device)
    workers = recipe.workers or os.cpu_count() or 1
    # threads beyond the cores that the workers leave only wait for one another
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))
    folder = resolve(recipe.model.checkpoint)
    policy = load_policy(folder, device=device)
    prior = load_policy(recipe.model.prior or recipe.model.checkpoint, device=device)
    known = training_formulas(policy, folder)
    condition = condition_from_recipe(recipe, policy)
    with potential_pool(workers=workers) as potential, run.store() as store:
        objective = Objective.from_settings(
            recipe.objective, store, resources={"potential": potential, "pool": potential.pool}
        )
        loop = Loop(recipe, policy, prior, objective, condition, known, run, on_step=on_step)
        done = loop.restore()
        stability = next(
            (p for p in objective.properties.values() if isinstance(p, EnergyAboveHull)),
            EnergyAboveHull(potential),
        )
        run.update_manifest(stability=stability.description, prior=prior.metadata["weights_sha256"])
        say(f"tuning from step {done}" if done else "tuning")
        reason = loop.run()
        objective.close()
        say(f"tuning ended: {reason}")
        run.update_manifest(ended=reason)
        policy.metadata = {**prior.metadata, "tuned": {"run": run.path.name, "steps": loop.step}}
        save_policy(policy, run.path / MODEL_FOLDER)
        known.save(run.path / MODEL_FOLDER / FORMULAS)
        _judge_both(recipe, run, (prior, policy), condition, stability, known, say)
    if recipe.output.report:
        say(f"report: {build_report(run.path)}")


def _judge_both(
    recipe: Recipe,
    run: RunDirectory,
    policies: tuple[WyckoffPolicy, WyckoffPolicy],
    condition: Condition,
    stability: EnergyAboveHull,
    known: KnownCrystals,
    say: Callable[[str], None],
) -> None:
    """Base against tuned at equal sample count, and the best of the tuned model's crystals."""
    settings = recipe.evaluation
    others = [EnergyAboveHull(stability.potential, hull) for hull in settings.hulls]
    evaluations: dict[str, list[Evaluation]] = {"base": [], "tuned": []}
    pooled: list[tuple[Evaluation, Samples]] = []
    folder = run.path / EVALUATION_FOLDER
    if settings.coordinate_temperature is not None:
        condition = replace(condition, coordinate_temperature=settings.coordinate_temperature)
    for seed in settings.seeds:
        for name, policy in zip(("base", "tuned"), policies, strict=True):
            say(f"judging {settings.samples} crystals of the {name} model, seed {seed}")
            # a seed apart from those of tuning
            drawn = sample(policy, settings.samples, condition, seed=1_000_003 + seed)
            evaluation = judge(
                drawn,
                stability,
                hulls=others,
                reference=known,
                name=f"{name}-{seed}",
                stable_below=settings.stable_below,
                extra={"seed": seed, "condition": "as in the recipe"},
            )
            comparison.write_evaluation(evaluation, folder)
            evaluations[name].append(evaluation)
            if name == "tuned":
                pooled.append((evaluation, drawn))
    compared = comparison.compare(evaluations["base"], evaluations["tuned"])
    comparison.write_comparison(compared, folder)
    best = _best(pooled, recipe.output.best)
    write_best(best, run.path / CRYSTALS_FOLDER)
    say(f"base against tuned: {folder / comparison.RESULTS_MARKDOWN}")


def _best(pooled: Sequence[tuple[Evaluation, Samples]], limit: int) -> Best:
    """The best crystals of the first evaluation's samples."""
    evaluation, drawn = pooled[0]
    return select_best(evaluation, drawn.structures, limit)


def _device(name: str) -> str:
    """The device that a recipe names."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise RecipeError(
                f"device {name!r} is not there", "torch sees no CUDA device", "use device: cpu"
            )
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
