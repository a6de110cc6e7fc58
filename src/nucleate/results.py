"""What a finished run hands over: base against tuned, and the best crystals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nucleate.evaluation import compare as comparison
from nucleate.evaluation.best import RUN, best_of_run, comparable, select_best, write_best
from nucleate.evaluation.judge import Energies, hull_cards, judge
from nucleate.evaluation.outcome import as_scored, compare_outcomes, outcome, rewarded
from nucleate.objectives.objective import Objective
from nucleate.physics.hull import DEFAULT_HULL, Hull
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.properties.stability import EnergyAboveHull
from nucleate.protocols import Potential
from nucleate.recipe import STABILITY, Recipe
from nucleate.report.data import CRYSTALS_FOLDER, EVALUATION_FOLDER
from nucleate.samples import Samples, condition_from_recipe, sample
from nucleate.screen.screen import Screen
from nucleate.screen.settings import StableStage
from nucleate.store.packing import unpack_batch
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.writing import column_name

if TYPE_CHECKING:
    import pandas as pd

    from nucleate.evaluation.summary import Evaluation
    from nucleate.evaluation.sun import KnownCrystals

JUDGING_SEEDS = 1_000_003
"""Added to the seeds of judging, so that they are not those of tuning."""


def judges_of(
    recipe: Recipe, objective: Objective, screen: Screen, potential: Potential
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


def judge_both(
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
    units = {name: column_name(name, p.unit) for name, p in objective.properties.items()}
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
                written = table.rename(columns=units)
                comparison.write_table(written, folder / f"objective-{name}-{seed}.csv")
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


def write_best_crystals(
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
    n = sum(int(comparable(evaluation.table).sum()) for evaluation in samples)
    looked_at = {"evaluated": found.evaluated, "new_formulas": found.new, "samples": n}
    run.update_manifest(best=looked_at | {"stable": bool(stability)})
    of_run = sum(row["set"] == RUN for row in best.rows)
    say(
        f"best crystals: {of_run} of the {found.evaluated:,} that the run evaluated, "
        f"{len(best) - of_run} of the {n:,} judged samples"
    )
