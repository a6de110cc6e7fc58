"""Energies above the shipped hulls against labels from density-functional theory.

    python benchmarks/hull_agreement.py --crystals CRYSTALS.parquet

Every crystal of a table with a column ``e_hull`` (eV/atom) gets its energy from the default
potential, unrelaxed, and its energy above each shipped hull. Printed for each hull: bias, mean
absolute error, and how often both sides agree on "below 0.1 eV/atom", with 95 % intervals by
bootstrap. The labels' hull contains the labelled crystals, so a label is never negative; ours are
therefore also compared after clipping at zero. "On our hull" counts crystals whose own
composition is a reference phase by the same potential (zero by construction); leaving a crystal's
own entry out can only lower a zero, and so changes no verdict.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse

import numpy as np

from arguments import existing
from nucleate.physics.hull import Hull
from nucleate.physics.hull_card import DEFAULT_HULL, SHIPPED
from nucleate.physics.potentials import get_potential
from nucleate.properties.stability import EnergyAboveHull
from nucleate.structures.io import read

STABLE = 0.1  # eV/atom


def interval(values: np.ndarray, rng: np.random.Generator) -> str:
    """Mean and 95 % bootstrap interval."""
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(500)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def compare(name: str, ours: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> float:
    """Print one hull's agreement with the labels; returns the agreed fraction."""
    below, labelled = ours < STABLE, label < STABLE
    error = ours - label
    clipped = np.maximum(ours, 0.0) - label
    agree = (below == labelled).astype(float)
    print(f"hull {name}: {len(ours)} crystals")
    print(f"  bias                        {interval(error, rng)} eV/atom")
    print(f"  mean absolute error         {interval(np.abs(error), rng)} eV/atom")
    print(f"  the same, clipped at zero   {interval(np.abs(clipped), rng)} eV/atom")
    print(f"  median absolute error       {np.median(np.abs(error)):.4f} eV/atom")
    print(f"  agreement on < {STABLE} eV/atom  {interval(agree, rng)}")
    print(f"  called stable {below.mean():.3f}, labelled stable {labelled.mean():.3f}")
    print(f"  of those called stable, labelled stable: {labelled[below].mean():.3f}")
    print(f"  of those labelled stable, called stable: {below[labelled].mean():.3f}")
    print(
        f"  below the hull {np.mean(ours < -1e-6):.3f}, on it {np.mean(np.abs(ours) <= 1e-6):.3f}"
    )
    return float(agree.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--crystals", type=existing, required=True, help="table of crystals with a column e_hull"
    )
    parser.add_argument("--count", type=int, default=3000, help="crystals drawn; 0 for all")
    parser.add_argument("--max-vol-per-atom", type=float, default=60.0, help="Å^3")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)

    structures, labels, without_label = [], [], 0
    for record in read(options.crystals, strict=False):
        label = record.properties.get("e_hull")
        if record.structure is None:
            continue
        if label is None or not np.isfinite(label):
            without_label += 1
        elif record.structure.volume / len(record.structure) < options.max_vol_per_atom:
            structures.append(record.structure)
            labels.append(float(label))
    print(
        f"{options.crystals.name}: {len(labels)} labelled crystals, {without_label} without label"
    )
    if options.count and options.count < len(labels):
        chosen = np.sort(rng.choice(len(labels), options.count, replace=False))
        structures, labels = [structures[i] for i in chosen], [labels[i] for i in chosen]

    potential = get_potential("chgnet")
    results = potential.evaluate(structures)
    label = np.array(labels)
    scores = {
        name: EnergyAboveHull(potential, Hull.load(name)).from_energies(structures, results)
        for name in SHIPPED
    }
    both = np.all([s.ok for s in scores.values()], axis=0)
    print(f"{both.sum()} of {len(both)} have a value on every hull; energies by {potential.name}")
    agreed = {name: compare(name, s.value[both], label[both], rng) for name, s in scores.items()}
    best = max(agreed, key=lambda name: agreed[name])
    print(f"best agreement: {best}; default: {DEFAULT_HULL}")


if __name__ == "__main__":
    main()
