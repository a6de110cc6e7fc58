"""Base against tuned models: stable, unique and novel fractions with 95 % intervals.

    python benchmarks/stability.py runs/a runs/b runs/c --crystals TRAIN

Each run is one tuning seed. Every model draws ``--samples`` crystals, base and tuned with the same
sampling seed, unrelaxed, judged against both shipped hulls; novelty is measured crystal by crystal
against the training set (StructureMatcher), not by formula alone.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

from arguments import existing
from nucleate.design import potential_pool
from nucleate.evaluation import compare as comparison
from nucleate.evaluation.judge import judge
from nucleate.policies.checkpoint import load_policy
from nucleate.properties.stability import EnergyAboveHull
from nucleate.recipe import Recipe
from nucleate.samples import condition_from_recipe, sample
from nucleate.store.rundir import RunDirectory
from nucleate.structures.identity import ReferenceSet


def training_set(data: Path) -> ReferenceSet:
    """The training crystals, indexed."""
    return ReferenceSet.from_file(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument(
        "--crystals",
        type=existing,
        required=True,
        help="training crystals: prepared data, or a file or folder of crystals",
    )
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/stability-benchmark"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("moyo").setLevel(logging.ERROR)
    reference = training_set(arguments.crystals)
    evaluations: dict[str, list] = {"base": [], "tuned": []}
    with potential_pool() as potential:
        main_judge = EnergyAboveHull(potential, "mp2020")
        other = EnergyAboveHull(potential, "chgnet")
        for number, path in enumerate(arguments.runs):
            manifest = RunDirectory.open(path, read_only=True).manifest()
            recipe = Recipe.model_validate(manifest["recipe"])
            models = {"base": recipe.model.checkpoint, "tuned": path / "model"}
            for name, folder in models.items():
                policy = load_policy(folder)
                condition = condition_from_recipe(recipe, policy)
                drawn = sample(policy, arguments.samples, condition, seed=2_000_000 + number)
                found = judge(
                    drawn,
                    main_judge,
                    hulls=[other],
                    reference=reference,
                    name=f"{name}-{number}",
                    extra={"run": str(path), "sampling seed": 2_000_000 + number},
                )
                evaluations[name].append(found)
                comparison.write_evaluation(found, arguments.out)
    compared = comparison.compare(evaluations["base"], evaluations["tuned"])
    comparison.write_comparison(compared, arguments.out)
    print(comparison.to_markdown(compared))


if __name__ == "__main__":
    main()
