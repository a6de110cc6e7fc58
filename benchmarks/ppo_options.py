"""What each option of the algorithm contributes, at equal evaluations.

    python benchmarks/ppo_options.py --evaluations 10240

Every row is one run of the recipe ``stability`` with one thing changed (``published`` is the recipe
``stability-published``), same seed, same number of evaluations of the energy above hull, then
``--samples`` crystals of the tuned model, drawn at the same temperatures and judged unrelaxed
against the default hull; "new" counts stable crystals whose formula is neither in the training set
nor earlier in the samples.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path

from nucleate.design import tune

ALL_DRAWS = ["algorithm.continuous_weight=1", "condition.coordinate_temperature=1"]
OPTIONS: dict[str, tuple[str, list[str]]] = {
    "default": ("stability", []),
    "published": ("stability-published", []),
    "coordinates and lattice reinforced too": ("stability", ALL_DRAWS),
    "kl in the surrogate": ("stability", ["algorithm.form=published"]),
    "token ratios": ("stability", ["algorithm.ratio=token"]),
    "whole batch": ("stability", ["algorithm.minibatch=null"]),
    "three inner steps": ("stability", ["algorithm.inner_steps=3"]),
    "not whitened": ("stability", ["algorithm.whiten=false"]),
    "batch baseline": ("stability", ["algorithm.baseline=batch_ema"]),
    "no size neutrality": ("stability", ["algorithm.size_neutrality=0"]),
    "no bonus": ("stability", ["algorithm.novelty_bonus=0"]),
    "last weights": ("stability", ["algorithm.average=0"]),
    "kl target 6 nat": ("stability", ["algorithm.kl_target=6"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=10_240)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/ppo-options"))
    parser.add_argument("--only", nargs="*", help="names of options; all by default")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("moyo").setLevel(logging.ERROR)
    print("| option | evaluations | stable | new | KL, nat | systems | sites | atoms | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (recipe, overrides) in OPTIONS.items():
        if arguments.only and name not in arguments.only:
            continue
        started = time.monotonic()
        last: dict = {}
        run = tune(
            recipe,
            overrides=[
                f"output.directory={arguments.out}",
                f"output.name={name.replace(' ', '-')}",
                "output.report=false",
                "algorithm.guard.action=warn",
                "budget.minutes=null",
                f"budget.evaluations={arguments.evaluations}",
                f"evaluation.samples={arguments.samples}",
                "evaluation.coordinate_temperature=0.1",
                *overrides,
                *arguments.set,
            ],
            on_step=last.update,
            on_stage=lambda _: None,
        )
        print(_row(name, run, last, time.monotonic() - started), flush=True)
    print(f"\n{os.cpu_count()} cores, {arguments.samples} samples of each model")


def _row(name: str, run: Path, last: dict, seconds: float) -> str:
    import pandas as pd

    table = pd.read_csv(next((run / "evaluation").glob("tuned*.csv")))
    systems = table["formula"].map(lambda f: tuple(sorted(_elements(f)))).nunique()
    return (
        f"| {name} | {last['evaluations']} | {table['stable'].mean():.3f} | "
        f"{table['stable_new_formula'].mean():.3f} | {last['kl']:.2f} | {systems} | "
        f"{table['n_sites'].mean():.2f} | {table['n_atoms'].mean():.2f} | {seconds:.0f} s |"
    )


def _elements(formula: str) -> list[str]:
    from pymatgen.core import Composition

    return [element.symbol for element in Composition(formula).elements]


if __name__ == "__main__":
    main()
