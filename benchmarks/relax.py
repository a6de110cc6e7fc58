"""Relaxation with CHGNet: its own ASE relaxer, one crystal at a time, against ours.

    python benchmarks/relax.py --crystals CRYSTALS.parquet [--number 100]

The crystals are mixed: each cell is stretched by up to ``--stretch`` in length, and in every
second crystal all atoms are displaced as well (``--displacement`` Å in each direction, standard
deviation), which leaves no symmetry. The further they are moved, the more of them end in another
minimum. Both sides relax atoms and cell until no force on an atom or on the cell, the virial over
the number of atoms, exceeds ``--fmax``. One thread, processor time.

Energies must agree to 5 meV/atom for 95 % of the crystals that either side calls relaxed, every
relaxed crystal of ours must meet the criterion by the package's own forces too, and ours must be
at least three times faster, or the script fails. The table has the columns lattice, numbers,
frac_coords.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Lattice, Structure

from arguments import existing
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.physics.relax import Relaxation, RelaxSettings, RelaxStatus, relax

MOST_ATOMS = 20
MAX_STEPS = 500
TOLERANCE = 0.005  # eV/atom
FORCE_TOLERANCE = 2e-3  # eV/Å; float32 forces of two programmes
FASTER = 3.0


def crystals(path: Path, number: int, stretch: float, displacement: float) -> list[Structure]:
    """A fixed random choice of a table's crystals of at most 20 atoms, disturbed."""
    table = pd.read_parquet(path, columns=["lattice", "numbers", "frac_coords"])
    table = table[table["numbers"].map(len) <= MOST_ATOMS].sample(number, random_state=0)
    rng = np.random.default_rng(0)
    found = []
    for i, row in enumerate(table.itertuples()):
        cell = np.reshape(row.lattice, (3, 3)) * (1 + rng.uniform(-stretch, stretch))
        structure = Structure(Lattice(cell), row.numbers, np.reshape(row.frac_coords, (-1, 3)))
        moves = rng.normal(0, displacement, (len(structure), 3))
        if i % 2:
            moved = structure.cart_coords + moves
            structure = Structure(
                structure.lattice, structure.species, moved, coords_are_cartesian=True
            )
        found.append(structure)
    return found


def one_by_one(structures: list[Structure], fmax: float) -> list[tuple[float, int] | None]:
    """The last energy (eV/atom) and the steps of each crystal, None where it is not relaxed."""
    from chgnet.model import StructOptimizer

    relaxer = StructOptimizer(use_device="cpu")
    found: list[tuple[float, int] | None] = []
    for structure in structures:
        try:
            result = relaxer.relax(structure, fmax=fmax, steps=MAX_STEPS, verbose=False)
        except Exception as error:  # that crystal's own failure
            print(f"{structure.formula}: {type(error).__name__} one by one")
            found.append(None)
            continue
        trajectory = result["trajectory"]
        steps = len(trajectory.energies) - 2  # the start, and the end once more
        done = steps < MAX_STEPS
        found.append((trajectory.energies[-1] / len(structure), steps) if done else None)
    return found


def force_left(structure: Structure, calculator: object) -> float:
    """Largest force on an atom or the cell by the package itself, eV/Å."""
    from ase.filters import FrechetCellFilter

    atoms = structure.to_ase_atoms()
    atoms.calc = calculator
    return float(np.linalg.norm(FrechetCellFilter(atoms).get_forces(), axis=1).max())


def compare(
    structures: list[Structure],
    ours: list[Relaxation],
    theirs: list[tuple[float, int] | None],
    verbose: bool,
) -> float:
    """Print what came out; the share of equal energies."""
    equal = both = lower = 0
    for structure, mine, other in zip(structures, ours, theirs, strict=True):
        relaxed = mine.status is RelaxStatus.CONVERGED
        if relaxed and other is not None:
            difference = mine.energy_after - other[0]
            both += 1
            equal += abs(difference) < TOLERANCE
            lower += difference <= -TOLERANCE
            if verbose or abs(difference) >= TOLERANCE:
                print(
                    f"{structure.formula}: ours {difference * 1e3:+.1f} meV/atom, "
                    f"{mine.n_steps} steps for {other[1]}"
                )
        elif relaxed or other is not None:
            print(
                f"{structure.formula}: ours {mine.status} {mine.reason}, "
                f"one by one {'not ' if other is None else ''}relaxed"
            )
    print(
        f"relaxed by both {both}, by us {sum(r.status is RelaxStatus.CONVERGED for r in ours)}, "
        f"one by one {sum(t is not None for t in theirs)}, of {len(structures)}; "
        f"{equal} of {both} within {TOLERANCE * 1e3:g} meV/atom, "
        f"ours lower in {lower}, higher in {both - equal - lower}"
    )
    print(
        f"steps a crystal: ours {np.mean([r.n_steps for r in ours]):.1f}, "
        f"one by one {np.mean([MAX_STEPS if t is None else t[1] for t in theirs]):.1f}"
    )
    return equal / max(both, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crystals", type=existing, required=True, help="parquet, see above")
    parser.add_argument("--number", type=int, default=100, help="crystals")
    parser.add_argument("--stretch", type=float, default=0.02, help="largest, of lengths")
    parser.add_argument("--displacement", type=float, default=0.02, help="of atoms, Å")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    parser.add_argument("--verbose", action="store_true", help="a line for each crystal")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    from chgnet.model.dynamics import CHGNetCalculator

    structures = crystals(options.crystals, options.number, options.stretch, options.displacement)
    potential = ChgnetPotential()
    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(use_device="cpu")
    potential.evaluate(structures[:2], forces=True, stress=True)
    force_left(structures[0], calculator)

    start = time.process_time()
    ours = relax(structures, potential, RelaxSettings(fmax=options.fmax, max_steps=MAX_STEPS))
    our_time = time.process_time() - start
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = one_by_one(structures, options.fmax)
    their_time = time.process_time() - start

    share = compare(structures, ours, theirs, options.verbose)
    left = [
        force_left(r.structure, calculator)
        for r in ours
        if r.status is RelaxStatus.CONVERGED and r.structure is not None
    ]
    print(f"largest force left, by the package's forces: {max(left, default=0):.4f} eV/Å")
    n = len(structures)
    print(
        f"one by one {their_time / n:.2f} s, ours {our_time / n:.2f} s a crystal; "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    ratio = their_time / our_time
    if max(left, default=0) > options.fmax + FORCE_TOLERANCE:
        raise SystemExit("a crystal that was called relaxed is not")
    missed = share < 0.95 or ratio < FASTER
    print(f"{share:.0%} of the energies agree{', which is too few' if share < 0.95 else ''}")
    print(f"ratio: {ratio:.1f}")
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
