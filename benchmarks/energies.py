"""CHGNet energies: the package's ``predict_structure``, one crystal at a time, against ours.

    python benchmarks/energies.py --crystals CRYSTALS.parquet [--number 200]

The same crystals, one thread, processor time. The energies must agree to 1e-5 eV/atom, or the
script fails. Printed first: the package asked for the energy only (``task="e"``), in batches of
16; last: the package as it is called by default (``task="efsm"``) where all that is needed is an
energy.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from chgnet.model import CHGNet
from pymatgen.core import Lattice, Structure

from arguments import existing
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.protocols import PotentialResult


def crystals(path: Path, number: int) -> list[Structure]:
    """A fixed random choice of a table's crystals of ordinary density."""
    table = pd.read_parquet(path)
    table = table[table["vol_per_atom"] < 60].sample(number, random_state=0)
    return [
        Structure(
            Lattice(np.reshape(row.lattice, (3, 3))),
            row.numbers,
            np.reshape(row.frac_coords, (-1, 3)),
        )
        for row in table.itertuples()
    ]


def milliseconds(work: Callable[[], object], number: int, repeats: int = 1) -> float:
    """Processor time for each of ``number`` crystals, the best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best / number * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--crystals",
        type=existing,
        required=True,
        help="parquet with lattice, numbers, frac_coords, vol_per_atom",
    )
    parser.add_argument("--number", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    structures = crystals(options.crystals, options.number)
    n = len(structures)
    with contextlib.redirect_stdout(io.StringIO()):
        package = CHGNet.load(use_device="cpu")
    potential = ChgnetPotential()
    package.predict_structure(structures[0])
    potential.evaluate(structures[:50])
    theirs: list[float] = []

    def default() -> None:
        theirs.extend(float(package.predict_structure(s)["e"]) for s in structures)

    slow = milliseconds(default, n)
    batched = milliseconds(lambda: package.predict_structure(structures, task="e"), n)
    fast = milliseconds(lambda: potential.evaluate(structures), n, repeats=3)
    full = milliseconds(
        lambda: potential.evaluate(structures, forces=True, stress=True, magmoms=True), n
    )
    results = potential.evaluate(structures)
    ours = [r.energy for r in results if isinstance(r, PotentialResult)]
    worst = float(np.abs(np.subtract(ours, theirs)).max())
    atoms = np.mean([len(s) for s in structures])
    print(f"{n} crystals, {atoms:.1f} atoms on average; largest difference {worst:.1e} eV/atom")
    print(f"package, all tasks {slow:.2f} ms; energy only in batches {batched:.2f} ms a crystal")
    print(f"ours, energy {fast:.2f} ms; energy, forces, stress, moments {full:.2f} ms a crystal")
    print(f"ratio of energies only: {batched / fast:.1f}; of everything: {slow / full:.1f}")
    if worst > 1e-5:
        raise SystemExit("the energies differ by more than 1e-5 eV/atom")
    print(f"ratio: {slow / fast:.1f}")


if __name__ == "__main__":
    main()
