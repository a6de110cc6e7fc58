"""Unique and novel: this package against first fit by pymatgen's StructureMatcher.

A model's samples, in order, repeats included, are compared with one another (is this the first
crystal of its kind?) and with the crystals that it was trained on (is it one of them?). The plain
way asks ``StructureMatcher().fit`` of every pair of one reduced formula until one fits; both sides
give a verdict on every crystal, and all must be equal. Both get the same crystals as pymatgen
structures in this process, on one thread; times are CPU seconds, without sampling and reading.
Reducing crystals and comparing them is all inside these times, on both sides. The two take turns,
batch by batch, so that what else the machine does hits both. Only we go on to more crystals, to
show how our time grows with their number.

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
from nucleate.policies.checkpoint import load_policy
from nucleate.samples import sample
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


class Plain:
    """First fit by StructureMatcher within formulas."""

    def __init__(self, reference: Sequence[Structure]) -> None:
        self.matcher = StructureMatcher()
        self.known: dict[str, list[Structure]] = defaultdict(list)
        self.kinds: dict[str, list[Structure]] = defaultdict(list)
        for structure in reference:
            self.known[structure.composition.reduced_formula].append(structure)

    def judge(self, crystals: Sequence[Structure]) -> np.ndarray:
        """(2, B) bool: first of its kind, and known, of each of the next B crystals."""
        verdicts = np.zeros((2, len(crystals)), bool)
        for i, crystal in enumerate(crystals):
            formula = crystal.composition.reduced_formula
            verdicts[0, i] = not any(self.matcher.fit(k, crystal) for k in self.kinds[formula])
            if verdicts[0, i]:
                self.kinds[formula].append(crystal)
            known = self.known.get(formula, ())
            verdicts[1, i] = any(self.matcher.fit(k, crystal) for k in known)
        return verdicts


class Ours:
    """The same by UniqueFilter and ReferenceSet."""

    def __init__(self, reference: ReferenceSet) -> None:
        self.reference, self.filter = reference, UniqueFilter()

    def judge(self, crystals: Sequence[Structure]) -> np.ndarray:
        """(2, B) bool, as :meth:`Plain.judge`."""
        cells = as_cells(crystals)
        return np.stack([self.filter.add(cells)[0], self.reference.is_known(cells)[0]])


class Timed:
    """Judges crystals batch by batch.

    Attributes:
        times: CPU seconds up to each of ``marks``, numbers of crystals.
    """

    def __init__(self, judge: Plain | Ours, marks: Sequence[int]) -> None:
        self.judge, self.marks, self.times = judge, marks, dict[int, float]()
        self._seen, self._spent = 0, 0.0

    def next(self, crystals: Sequence[Structure]) -> np.ndarray:
        """The verdicts on one batch."""
        start = time.process_time()
        verdicts = self.judge.judge(crystals)
        self._spent += time.process_time() - start
        self._seen += len(crystals)
        if self._seen in self.marks:
            self.times[self._seen] = self._spent
            name = type(self.judge).__name__
            print(f"{name}: {self._seen} crystals in {self._spent:.2f} s", flush=True)
        return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=existing, required=True, help="folder of a tuned model")
    parser.add_argument("--training", nargs="+", required=True, help="files or globs of crystals")
    parser.add_argument("--count", type=int, default=20_000, help="crystals that both judge")
    parser.add_argument("--growth", type=int, default=100_000, help="crystals that we judge alone")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.count % BATCH or options.growth % BATCH:
        parser.error(f"--count and --growth have to be multiples of {BATCH}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.process_time()
    reference, names = training(options.training)
    print(f"{len(reference)} training crystals read in {time.process_time() - start:.0f} s")
    start = time.process_time()
    index = ReferenceSet.from_structures(reference, names)
    print(f"indexed in {time.process_time() - start:.1f} s")
    source = drawn(options.model, options.seed)
    marks = sorted({min(1000, options.count), options.count, options.growth})
    plain, ours = Timed(Plain(reference), marks), Timed(Ours(index), marks)
    formulas: set[str] = set()
    total, differ = np.zeros(2, int), 0
    for _ in range(0, options.count, BATCH):
        crystals = list(islice(source, BATCH))
        verdicts = ours.next(crystals)
        differ += int((plain.next(crystals) != verdicts).sum())
        total += verdicts.sum(axis=1)
        formulas |= {crystal.composition.reduced_formula for crystal in crystals}
    print(f"{len(formulas)} formulas; {total[0]} unique, {total[1]} known")
    print(f"verdicts that differ: {differ} of {2 * options.count}", flush=True)
    if differ:
        raise SystemExit("the verdicts are not equal")
    for _ in range(options.count, options.growth, BATCH):
        ours.next(list(islice(source, BATCH)))
    print(f"{'crystals':>9} {'StructureMatcher, s':>20} {'nucleate, s':>12} {'ratio':>7}")
    for size, seconds in sorted(ours.times.items()):
        theirs = plain.times.get(size)
        plainly, ratio = "not run", ""
        if theirs is not None:
            plainly, ratio = f"{theirs:.1f}", f"{theirs / seconds:.1f}"
        print(f"{size:9} {plainly:>20} {seconds:12.2f} {ratio:>7}")
    for a, b in pairwise(sorted(ours.times)):
        power = np.log(ours.times[b] / ours.times[a]) / np.log(b / a)
        print(f"from {a} to {b} crystals our time grows as their number to the power {power:.2f}")


if __name__ == "__main__":
    main()
