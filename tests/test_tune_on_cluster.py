"""A whole run whose evaluations are tasks of Parsl's workers, one of which is killed at work."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate import design
from nucleate.policies.checkpoint import load_policy, save_policy
from nucleate.recipe import Recipe
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from tiny import tiny_policy

FUNCTION = '''
import hashlib, os, signal, time, uuid
from pathlib import Path

SIGNS = Path(__file__).parent / "signs"

def volume(structures):
    """Å³, after a while; the ninth evaluation kills its worker if that is asked for."""
    for s in structures:
        crystal = hashlib.sha256(s.lattice.matrix.tobytes() + s.frac_coords.tobytes())
        crystal.update(repr(s.species).encode())
        (SIGNS / f"{crystal.hexdigest()}-{uuid.uuid4().hex}").touch()
        time.sleep(0.02)
        if len(list(SIGNS.iterdir())) > 8:
            try:
                (SIGNS.parent / "kill").unlink()
            except FileNotFoundError:
                continue
            # the parent is one of Parsl's two workers, with this task alone; their manager is its
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
    return [s.volume for s in structures]
'''
TIMINGS = {"time", "seconds", "spent_seconds", "spent_cached"}


def run(folder: Path, **where: Any) -> tuple[Path, Counter[str]]:
    """A short run in a folder of its own, and how often each crystal was evaluated."""
    (folder / "signs").mkdir(parents=True)
    (folder / "slow.py").write_text(FUNCTION)
    save_policy(tiny_policy(0), folder / "model")
    known = FormulaIndex(np.arange(1, 9, dtype=np.uint64), "none")
    known.save(folder / "model" / design.FORMULAS)
    term = {
        "property": f"{folder / 'slow.py'}:volume",
        "settings": {"cost": "dft"},
        "shaping": {"type": "linear", "low": 0.0, "high": 500.0},
    }
    recipe = {
        "name": "slow",
        "device": "cpu",
        "model": {"checkpoint": str(folder / "model")},
        "condition": {"space_groups": [2, 221]},
        "objective": {"terms": [term]},
        "algorithm": {"minibatch": 8, "novelty_bonus": 0, "guard": {"action": "off"}},
        "budget": {"batch_size": 12, "steps": 3},
        "evaluation": {"samples": 4, "seeds": [1], "hulls": []},
        "output": {"directory": str(folder / "runs"), "best": 0, "tensorboard": False},
    }
    path = design.tune(Recipe.model_validate(recipe | where))
    return path, Counter(sign.name.split("-")[0] for sign in (folder / "signs").iterdir())


def numbers(path: Path) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The log without what the clock said, and all crystals with their values."""
    with RunDirectory.open(path, read_only=True) as opened:
        log = [
            {k: v for k, v in row.items() if k not in TIMINGS and not k.startswith("seconds_")}
            for row in opened.read_log()
        ]
        with opened.store(read_only=True) as store:
            table = store.crystals("volume")
    return log, {name: np.asarray(column).tolist() for name, column in table.items()}


def test_a_killed_worker_changes_nothing_in_a_run(tmp_path: Path) -> None:
    pytest.importorskip("parsl")
    setup = f"export PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"
    jobs = {"scheduler": "local", "workers": 2, "setup": setup}
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "kill").touch()
    there, asked_there = run(tmp_path / "cluster", cluster=jobs)
    here, asked_here = run(tmp_path / "local", workers=2)

    assert not (tmp_path / "cluster" / "kill").exists()
    assert json.loads((there / "manifest.json").read_text())["ended"] == "3 steps done"
    assert asked_there.keys() == asked_here.keys()
    assert set(asked_here.values()) == {1}
    assert sorted(asked_there.values()) == [1] * (len(asked_here) - 1) + [2]
    (log_there, crystals_there), (log_here, crystals_here) = numbers(there), numbers(here)
    np.testing.assert_equal(log_there, log_here)
    np.testing.assert_equal(crystals_there, crystals_here)
    assert (np.array(crystals_here["volume/status"]) == "ok").sum() > 8
    tuned = [load_policy(path / "model").metadata["weights_sha256"] for path in (there, here)]
    assert tuned[0] == tuned[1]
