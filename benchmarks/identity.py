"""Unique and novel: this package against first fit by pymatgen's StructureMatcher.

A model's samples, in order, repeats included, are compared with one another (is this the first
crystal of its kind?) and with the crystals that it was trained on (is it one of them?). The plain
way asks ``StructureMatcher().fit`` of every pair of one reduced formula until one fits; both sides
give a verdict on every crystal, and all must be equal. Both get the same crystals as pymatgen
structures in this process, on one thread; times are CPU seconds, without sampling and reading.
Reducing crystals and comparing them is all inside these times, on both sides. Only we go on to more
crystals, to show how our time grows with their number.

    python benchmarks/identity.py --model runs/stability/model --training 'train-*.parquet'
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from arguments import existing
from nucleate.design import sample
from nucleate.policies.checkpoint import load_policy
from nucleate.structures.identity import ReferenceSet, UniqueFilter, as_cells
from nucleate.structures.io import iter_raw
from nucleate.structures.parsing import parse_cell, to_structure
from nucleate.structures.validity import check_all

BATCH = 250  # crystals judged at a time, as in a run


def drawn(model: Path, seed: int) -> Iterator[Structure]:
    """The valid crystals that a model draws, without end."""
    policy = load_policy(model)
    for n in count():
        structures = sample(policy, 2 * BATCH, seed=seed + n).structures
        invalid = check_all(structures)
        yield from (s for s, why in zip(structures, invalid, strict=True) if s and not why)


def training(sources: Sequence[str]) -> tuple[list[Structure], list[str]]:
    """Crystals of files and their names."""
    structures, names = [], []
    for source in sources:
        for raw in iter_raw(source):
            cell, _ = parse_cell(raw)
            if cell is not None:
                structures.append(to_structure(cell))
                names.append(raw.id)
    return structures, names


def by_pymatgen(
    crystals: Sequence[Structure], reference: Sequence[Structure], marks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """First of its kind, and known, of each crystal; seconds up to each mark."""
    matcher = StructureMatcher()
    known: dict[str, list[Structure]] = defaultdict(list)
    for structure in reference:
        known[structure.composition.reduced_formula].append(structure)
    kinds: dict[str, list[Structure]] = defaultdict(list)
    first, seen, times = np.zeros(len(crystals), bool), np.zeros(len(crystals), bool), {}
    start = time.process_time()
    for i, crystal in enumerate(crystals):
        formula = crystal.composition.reduced_formula
        first[i] = not any(matcher.fit(kind, crystal) for kind in kinds[formula])
        if first[i]:
            kinds[formula].append(crystal)
        seen[i] = any(matcher.fit(other, crystal) for other in known.get(formula, ()))
        if i + 1 in marks:
            times[i + 1] = time.process_time() - start
            print(f"StructureMatcher: {i + 1} crystals in {times[i + 1]:.1f} s", flush=True)
    return first, seen, times


class Ours:
    """The same by UniqueFilter and ReferenceSet, batch by batch.

    Attributes:
        times: CPU seconds up to each mark.
    """

    def __init__(self, reference: ReferenceSet, marks: Sequence[int]) -> None:
        self.reference, self.marks, self.filter = reference, marks, UniqueFilter()
        self.times: dict[int, float] = {}
        self._spent = 0.0

    def judge(self, crystals: Sequence[Structure]) -> tuple[np.ndarray, np.ndarray]:
        """First of its kind, and known, of the next crystals."""
        first, seen = [], []
        for at in range(0, len(crystals), BATCH):
            batch = crystals[at : at + BATCH]
            start = time.process_time()
            cells = as_cells(batch)
            first.append(self.filter.add(cells)[0])
            seen.append(self.reference.is_known(cells)[0])
            self._spent += time.process_time() - start
            if self.filter.n_seen in self.marks:
                self.times[self.filter.n_seen] = self._spent
                print(f"nucleate: {self.filter.n_seen} crystals in {self._spent:.2f} s", flush=True)
        return np.concatenate(first), np.concatenate(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=existing, required=True, help="folder of a tuned model")
    parser.add_argument("--training", nargs="+", required=True, help="files or globs of crystals")
    parser.add_argument("--count", type=int, default=20_000, help="crystals that both judge")
    parser.add_argument("--growth", type=int, default=100_000, help="crystals that we judge alone")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.count % (4 * BATCH) or options.growth % (4 * BATCH):
        parser.error(f"--count and --growth have to be multiples of {4 * BATCH}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.process_time()
    reference, names = training(options.training)
    print(f"{len(reference)} training crystals read in {time.process_time() - start:.0f} s")
    start = time.process_time()
    index = ReferenceSet.from_structures(reference, names)
    print(f"indexed in {time.process_time() - start:.1f} s")
    source = drawn(options.model, options.seed)
    crystals = list(islice(source, options.count))
    print(f"{len(crystals)} crystals drawn", flush=True)

    marks = sorted({min(1000, options.count), options.count, options.growth})
    ours = Ours(index, marks)
    first, known = ours.judge(crystals)
    formulas = len({c.composition.reduced_formula for c in crystals})
    print(f"{formulas} formulas; {int(first.sum())} unique, {int(known.sum())} known", flush=True)
    their_first, their_known, theirs = by_pymatgen(crystals, reference, marks)
    differ = int((their_first != first).sum()) + int((their_known != known).sum())
    print(f"verdicts that differ: {differ} of {2 * options.count}", flush=True)
    if differ:
        raise SystemExit("the verdicts are not equal")
    for _ in range(options.count, options.growth, 4 * BATCH):
        ours.judge(list(islice(source, 4 * BATCH)))
    print(f"{'crystals':>9} {'StructureMatcher, s':>20} {'nucleate, s':>12} {'ratio':>7}")
    for size, seconds in sorted(ours.times.items()):
        theirs_too = f"{theirs[size]:20.1f}" if size in theirs else f"{'not run':>20}"
        ratio = f"{theirs[size] / seconds:7.1f}" if size in theirs else ""
        print(f"{size:9} {theirs_too} {seconds:12.2f} {ratio}")
    for a, b in pairwise(sorted(ours.times)):
        power = np.log(ours.times[b] / ours.times[a]) / np.log(b / a)
        print(f"from {a} to {b} crystals our time grows as their number to the power {power:.2f}")


if __name__ == "__main__":
    main()
