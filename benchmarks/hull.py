"""Energies above hull: this package against a pymatgen PhaseDiagram for each chemical system.

Both get the same reference phases and compositions and run on one thread. pymatgen's part is
given the phases of each chemical system (finding them is not timed); ours starts from formulas'
compositions with nothing cached. Times are CPU seconds of this process.

    python benchmarks/hull.py --crystals CRYSTALS.parquet
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from arguments import existing
from nucleate.physics.hull import Hull

TOLERANCE = 1e-6  # eV/atom


def sample(path: Path, count: int, seed: int) -> list[Composition]:
    """Compositions of randomly drawn crystals of a table with a column ``formula``."""
    formulas = pd.read_parquet(path, columns=["formula"]).formula
    return [Composition(f) for f in formulas.sample(count, random_state=seed)]


def phase_entries(hull: Hull) -> dict[frozenset[str], list[PDEntry]]:
    """All phases as pymatgen entries of formation energies, by chemical system."""
    entries: dict[frozenset[str], list[PDEntry]] = defaultdict(list)
    for i, energy in enumerate(hull.phase_energies):
        composition = Composition(hull.phase_formula(i))
        entry = PDEntry(composition, energy * composition.num_atoms)
        entries[frozenset(hull.phase_composition(i))].append(entry)
    return entries


def by_pymatgen(
    systems: dict[frozenset[str], list[int]],
    known: dict[frozenset[str], list[PDEntry]],
    compositions: list[Composition],
    energies: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Energies above hull and the CPU seconds that diagrams and look-ups took."""
    values, seconds = np.full(len(compositions), np.nan), 0.0
    for system, rows in systems.items():
        entries = [entry for part, listed in known.items() if part <= system for entry in listed]
        start = time.process_time()
        diagram = PhaseDiagram(entries)
        for i in rows:
            entry = PDEntry(compositions[i], energies[i] * compositions[i].num_atoms)
            values[i] = diagram.get_e_above_hull(entry, allow_negative=True)
        seconds += time.process_time() - start
    return values, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--crystals", type=existing, required=True, help="parquet with a column formula"
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hull", default="mp2020")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(options.seed)
    compositions = sample(options.crystals, options.count, options.seed)
    known = phase_entries(Hull.load(options.hull))
    systems: dict[frozenset[str], list[int]] = defaultdict(list)
    for i, composition in enumerate(compositions):
        systems[frozenset(e.symbol for e in composition)].append(i)

    start = time.process_time()
    hull = Hull.load(options.hull)
    hull.e_above_hull(compositions[:1], np.zeros(1), formation=True)  # indexes the phases
    opening = time.process_time() - start
    level = hull.hull_energies(hull.fractions(compositions)[0])
    energies = level + rng.normal(0.05, 0.2, len(compositions))  # some below the hull

    hull.forget()
    start = time.process_time()
    ours, reasons = hull.e_above_hull(compositions, energies, formation=True)
    our_seconds = time.process_time() - start
    if any(reasons):
        raise SystemExit(f"no value: {next(r for r in reasons if r)}")
    theirs, their_seconds = by_pymatgen(systems, known, compositions, energies)
    worst = float(np.abs(ours - theirs).max())
    sizes = np.bincount([len(s) for s in systems])
    print(f"hull {hull.name}: {len(hull)} phases; opened and indexed once in {opening:.2f} s")
    print(f"{len(compositions)} compositions in {len(systems)} chemical systems")
    print("systems by number of elements:", {k: int(n) for k, n in enumerate(sizes) if n})
    print(f"below the hull: {int((theirs < 0).sum())}; largest difference {worst:.1e} eV/atom")
    print(f"pymatgen {1e3 * their_seconds / len(compositions):.3f} ms a composition")
    print(f"nucleate {1e3 * our_seconds / len(compositions):.4f} ms a composition")
    if worst > TOLERANCE:
        raise SystemExit(f"the values differ by more than {TOLERANCE} eV/atom")
    print(f"ratio: {their_seconds / our_seconds:.1f}")


if __name__ == "__main__":
    main()
