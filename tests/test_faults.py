"""Whatever a property does to some crystals, the run goes on and tells why they have no value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nucleate import design, scoring
from nucleate.errors import NucleateError
from nucleate.policies.checkpoint import save_policy
from nucleate.protocols import Status
from nucleate.recipe import Recipe
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.store.packing import unpack_batch
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.wyckoff import decode
from tiny import tiny_policy

FAULTS = {
    "raises": ("raise ZeroDivisionError('of this one')", Status.FAILED, "of this one"),
    "hangs": ("time.sleep(600)", Status.TIMEOUT, "took longer than 2 s"),
    "nan": ("values.append(float('nan')); continue", Status.FAILED, "gave nan"),
    "inf": ("values.append(float('-inf')); continue", Status.FAILED, "gave -inf"),
    "none": ("values.append(None); continue", Status.UNSUPPORTED, "gave no value"),
    "too_few": ("continue", Status.FAILED, "0 values for 1 structures"),
    "dies": ("os.kill(os.getpid(), 9)", Status.CRASHED, "worker process died"),
}
FUNCTION = """
def {name}(structures):
    values = []
    for s in structures:
        if bad(s):
            {fault}
        values.append(s.volume)
    return values
"""
SIDES = np.linspace(3.0, 4.0, 12)  # Å
HEAD = """import os, time

def bad(s):
    return round(s.volume * 1000) % {share} == 0
"""
WRONG_ORDER = """
def backwards(structures):
    return [s.volume for s in structures][::-1]

def by_position(structures):
    return {i: structures[i].volume for i in reversed(range(len(structures)))}
"""


def write(folder: Path, share: int) -> Path:
    """A file with a function for each fault, which befalls one crystal in so many."""
    functions = [FUNCTION.format(name=name, fault=fault[0]) for name, fault in FAULTS.items()]
    path = folder / "faults.py"
    path.write_text(HEAD.format(share=share) + "".join(functions) + WRONG_ORDER)
    return path


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crystals of different volume."""
    from pymatgen.core import Lattice, Structure

    folder = tmp_path_factory.mktemp("cubes")
    for i, side in enumerate(SIDES):
        cube = Structure(Lattice.cubic(side), ["Po"], [[0, 0, 0]])
        cube.to(str(folder / f"{i:02}.cif"))
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_scoring_goes_on(cubes: Path, tmp_path: Path, name: str) -> None:
    file = write(tmp_path, share=9)
    cache = tmp_path / "evaluations.sqlite"
    settings = {"timeout": 2.0, "cost": "dft"}
    rows = scoring.score([cubes], f"{file}:{name}", settings, workers=2, cache=cache)
    failed = [round(side**3 * 1000) % 9 == 0 for side in SIDES]
    assert len(rows) == len(SIDES) and 0 < sum(failed) < 4
    _, status, reason = FAULTS[name]
    for row, fails, side in zip(rows, failed, SIDES, strict=True):
        assert row["status"] == (status if fails else Status.OK), row
        if fails:
            assert np.isnan(row[name]) and reason in row["reason"]
        else:
            assert row[name] == pytest.approx(side**3, rel=1e-5) and not row["reason"]
    with EvaluationCache(cache) as known:  # what has a value is kept
        kept = known._rows("SELECT value FROM evaluations WHERE status = 'ok' ORDER BY value")
    good = SIDES[~np.array(failed)] ** 3
    np.testing.assert_allclose([value for (value,) in kept], good, rtol=1e-5)


def test_an_order_that_is_wrong_is_refused_and_one_that_is_told_is_kept(
    cubes: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, share=9)
    for workers in (1, 2):
        with pytest.raises(NucleateError, match="another order"):
            scoring.score([cubes], f"{file}:backwards", workers=workers)
        rows = scoring.score([cubes], f"{file}:by_position", workers=workers)
        np.testing.assert_allclose([row["by_position"] for row in rows], SIDES**3, rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose objective has a property for each fault, and what it wrote."""
    folder = tmp_path_factory.mktemp("faults")
    save_policy(tiny_policy(0), folder / "model")
    known = FormulaIndex(np.arange(1, 9, dtype=np.uint64), "none")
    known.save(folder / "model" / design.FORMULAS)
    file = write(folder, share=5)
    shaping = {"type": "linear", "low": 0.0, "high": 500.0}
    terms = [
        {
            "property": f"{file}:{name}",
            "settings": {"timeout": 2.0, "cost": "dft"},
            "shaping": shaping,
        }
        for name in FAULTS
    ]
    recipe = {
        "name": "faults",
        "workers": 2,
        "device": "cpu",
        "model": {"checkpoint": str(folder / "model")},
        "condition": {"space_groups": [2, 221]},
        "objective": {"terms": terms},
        "algorithm": {"minibatch": 8, "novelty_bonus": 0, "guard": {"action": "off"}},
        "budget": {"batch_size": 12, "steps": 2},
        "evaluation": {"samples": 4, "seeds": [1]},
        "output": {"directory": str(folder / "runs"), "best": 0, "tensorboard": False},
    }
    return design.tune(Recipe.model_validate(recipe)), folder


def test_a_run_goes_on_and_counts_each_fault(run: tuple[Path, Path]) -> None:
    path, _ = run
    with RunDirectory.open(path, read_only=True) as opened:
        assert opened.verify() == []
        assert opened.manifest()["ended"] == "2 steps done"
        log = opened.read_log()
        with opened.store(read_only=True) as store:
            table = store.crystals(*FAULTS)
            spent = {entry.name: entry.evaluations for entry in store.spending()}
    valid = table["status"] != "invalid"
    assert len(table["digest"]) == 24 and valid.sum() > 8
    assert set(spent.values()) == {len(set(table["digest"][valid]))}
    assert log[-1]["spent"]["by_property"] == spent
    # every property had the same crystals, and each fault befell the same ones
    statuses = {name: table[f"{name}/status"][valid] for name in FAULTS}
    failed = statuses["raises"] != "ok"
    assert 0 < failed.sum() < valid.sum()
    for name, (_, status, reason) in FAULTS.items():
        assert set(statuses[name][failed]) == {status.value}, name
        assert set(statuses[name][~failed]) == {"ok"}, name
        assert all(reason in told for told in table[f"{name}/reason"][valid][failed]), name
        values = table[name][valid]
        np.testing.assert_array_equal(values[~failed], table["nan"][valid][~failed])
        assert np.isnan(values[failed]).all()
    counted = sum(sum(row["failures"].values()) for row in log)
    assert counted == 24 - (valid.sum() - failed.sum())


def test_nothing_of_it_is_lost(run: tuple[Path, Path]) -> None:
    """The cache of the folder has every value of the run, under the digests of the crystals."""
    path, folder = run
    keys = RunDirectory.open(path, read_only=True).manifest()["properties"]
    with (
        EvaluationCache(folder / "runs" / "evaluations.sqlite") as cache,
        RunDirectory.open(path, read_only=True).store(read_only=True) as store,
    ):
        digests = sorted(set(store.crystals()["digest"]))
        drawn = decode(unpack_batch(store.tokens(digests)))[0]
        named = {crystal_digest(s): d for d, s in zip(digests, drawn, strict=True) if s is not None}
        for name in FAULTS:
            mine = store.lookup(digests, keys[name])
            shared = {named[d]: e for d, e in cache.lookup(named, keys[name]).items()}
            good = {d: e.value for d, e in mine.items() if e.status is Status.OK}
            kept = {d: e.value for d, e in shared.items() if e.status is Status.OK}
            assert good and kept == good
