"""What each option of the algorithm contributes, at equal evaluations.

    python benchmarks/ppo_options.py --evaluations 10240

Every row is one run of the recipe ``stability`` with one thing changed, same seed, same number of
evaluations of the energy above hull, then ``--samples`` crystals of the tuned model, judged
unrelaxed against the default hull; "new" counts stable crystals whose formula is neither in the
training set nor earlier in the samples.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path

from nucleate.design import tune

OPTIONS: dict[str, list[str]] = {
    "default": [],
    "published": [
        "algorithm.form=published",
        "algorithm.kl_weight=0.1",
        "algorithm.inner_steps=3",
        "algorithm.minibatch=null",
        "algorithm.whiten=false",
        "algorithm.baseline=batch_ema",
        "algorithm.novelty_bonus=0",
    ],
    "no bonus": ["algorithm.novelty_bonus=0"],
    "not whitened": ["algorithm.whiten=false"],
    "whole batch": ["algorithm.minibatch=null"],
    "batch baseline": ["algorithm.baseline=batch_ema"],
    "token ratios": ["algorithm.ratio=token"],
    "kl in surrogate": ["algorithm.form=published"],
    "three inner steps": ["algorithm.inner_steps=3"],
    "kl target 6 nat": ["algorithm.kl_target=6"],
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
    lines = []
    for name, overrides in OPTIONS.items():
        if arguments.only and name not in arguments.only:
            continue
        started = time.monotonic()
        last: dict = {}
        run = tune(
            "stability",
            overrides=[
                f"output.directory={arguments.out}",
                f"output.name={name.replace(' ', '-')}",
                "output.report=false",
                "algorithm.guard.action=warn",
                "budget.minutes=null",
                f"budget.evaluations={arguments.evaluations}",
                f"evaluation.samples={arguments.samples}",
                *overrides,
                *arguments.set,
            ],
            on_step=last.update,
            on_stage=lambda _: None,
        )
        lines.append(_row(name, run, last, time.monotonic() - started))
        print(lines[-1], flush=True)
    print(f"\n{os.cpu_count()} cores; columns as above")


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
