"""A synthetic run that looks like a real one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.evaluation.best import Best, select_best
from nucleate.evaluation.summary import Evaluation, EvaluationSettings
from nucleate.evaluation.sun import evaluate_crystals
from nucleate.protocols import Scores, Status
from nucleate.report.data import ReportData, from_objects
from nucleate.structures.identity import ReferenceSet
from nucleate.structures.wyckoff import encode

CATIONS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Ti", "Zr", "Fe", "Zn", "In", "La", "Y", "Ag")
ANIONS = ("O", "S", "Se", "F", "Cl", "Br", "N", "Te")
HULLS = {
    "chgnet": {"source": "near-hull training crystals", "potential": "CHGNet", "sha256": "c0ffee"},
    "mp2020": {"source": "Materials Project, CC BY 4.0", "sha256": "deadbeef"},
}


def prototype(kind: int, a: str, b: str, x: str) -> Structure:
    """One of five structure types, lengths in Å."""
    face = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    if kind == 0:  # rock salt
        return Structure(5.3 * np.array(face), [a, x], [[0, 0, 0], [0.5, 0.5, 0.5]])
    if kind == 1:  # perovskite
        faces = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
        return Structure(Lattice.cubic(4.0), [a, b, x, x, x], [[0] * 3, [0.5] * 3, *faces])
    if kind == 2:  # fluorite
        return Structure(5.5 * np.array(face), [a, x, x], [[0] * 3, [0.25] * 3, [0.75] * 3])
    if kind == 3:  # rutile
        u = 0.305
        anions = [[u, u, 0], [1 - u, 1 - u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
        cell = Lattice.tetragonal(4.6, 3.0)
        return Structure(cell, [a, a, x, x, x, x], [[0] * 3, [0.5] * 3, *anions])
    layer = [[0, 0, 0], [1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]  # CdI2
    return Structure(Lattice.hexagonal(3.6, 6.0), [a, x, x], layer)


def sample(seed: int, n: int, tuned: bool) -> tuple[list[Structure], np.ndarray, list[Scores]]:
    """``n`` crystals, which are lost, and made-up energies above two hulls (eV/atom)."""
    rng = np.random.default_rng(seed)
    structures: list[Structure] = []
    weights = np.linspace(1, 3 if tuned else 1, len(CATIONS))
    for _ in range(n):
        a, b = rng.choice(CATIONS, 2, replace=False, p=weights / weights.sum())
        kind = int(rng.choice(5, p=[0.3, 0.25, 0.2, 0.15, 0.1]))
        structures.append(prototype(kind, str(a), str(b), str(rng.choice(ANIONS))))
    lost = rng.random(n) < (0.03 if tuned else 0.08)
    median = 0.11 if tuned else 0.3
    energy = rng.lognormal(math.log(median), 0.9, n) - 0.06
    energy[rng.random(n) < 0.02] = np.nan
    status = [Status.OK if np.isfinite(e) else Status.UNSUPPORTED for e in energy]
    why = ["" if np.isfinite(e) else "the hull lacks Pm" for e in energy]
    support = rng.integers(2, 90, n).astype(float)
    extra = {"energy_per_atom": energy - 4.2, "hull_support": support}
    main = Scores(energy, status, why, extra)
    return structures, lost, [main, Scores(energy + rng.normal(0, 0.03, n), status, why)]


def evaluation(seed: int, n: int, tuned: bool) -> Evaluation:
    """A judged synthetic sample."""
    drawn, lost, scores = sample(seed, n, tuned)
    tokens, _ = encode(drawn)
    structures = [None if gone else s for s, gone in zip(drawn, lost, strict=True)]
    known = [prototype(k, a, a, x) for k in (0, 2) for a in CATIONS[:6] for x in ANIONS[:4]]
    return evaluate_crystals(
        structures,
        ["two atoms on one spot" if gone else "" for gone in lost],
        tokens=tokens,
        hulls=dict(zip(HULLS, scores, strict=True)),
        reference=ReferenceSet.from_structures(known),
        charge_balanced=[True] * n,
        settings=EvaluationSettings(
            potential="chgnet 0.3.0", hulls=HULLS, reference="69,565 training crystals"
        ),
        name="tuned" if tuned else "base",
    )


def steps(n: int, seed: int = 0) -> list[dict[str, object]]:
    """Metrics of ``n`` steps as the loop logs them."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for step in range(n):
        t = step / n
        rows.append(
            {
                "step": step,
                "evaluations": 250 * (step + 1),
                "reward/mean": -0.35 + 0.25 * t**0.6 + rng.normal(0, 0.012),
                "stable_fraction": 0.17 + 0.3 * t**0.7 + rng.normal(0, 0.025),
                "unique_fraction": 0.93 - 0.06 * t + rng.normal(0, 0.01),
                "new_fraction": 0.08 + 0.2 * t**0.7 + rng.normal(0, 0.02),
                "kl": 6 * t + abs(rng.normal(0, 0.1)),
                "entropy": 23 - 4 * t + rng.normal(0, 0.3),
                "n_systems": 228 - 12 * t + rng.normal(0, 3),
                "mean_sites": 5.2 - 1.1 * t + rng.normal(0, 0.1),
                "mean_atoms": 9.4 - 2.1 * t + rng.normal(0, 0.2),
                "seconds_sampling": 0.9,
                "seconds_scoring": 4.1,
                "seconds_updating": 1.3,
            }
        )
    return rows


@pytest.fixture(scope="session")
def judged() -> tuple[Evaluation, Evaluation, Best]:
    """Base, tuned and the best tuned crystals."""
    base, tuned = evaluation(1, 150, tuned=False), evaluation(2, 150, tuned=True)
    return base, tuned, select_best([tuned], 40)


@pytest.fixture(scope="session")
def report_data(judged: tuple[Evaluation, Evaluation, Best]) -> ReportData:
    """Everything a finished run gives to the page."""
    base, tuned, best = judged
    return from_objects(
        "stability",
        base=[base],
        tuned=[tuned],
        best=best,
        metrics=steps(105),
        recipe="name: stability\nseed: 0\nalgorithm:\n  type: ppo\n  learning_rate: 1.0e-4\n",
        manifest={"created": "2026-11-20T10:00:00+00:00", "seeds": {"run": 0}, "git": "abc123"},
    )
