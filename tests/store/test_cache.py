"""The cache: what was kept is there for every run, whatever happened to whom."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import CheckpointError
from nucleate.protocols import Status
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.store.experience import Evaluation, ExperienceStore

KEY = "energy/weights-1"
KEEP = """
import sys
from nucleate.store.cache import EvaluationCache
from nucleate.store.experience import Evaluation
name, path, n = sys.argv[1:]
with EvaluationCache(path, name) as cache:
    for i in range(int(n)):
        cache.keep("energy/weights-1", {f"{name}-{i}": Evaluation(i), "common": Evaluation(7.0)})
        print(i, flush=True)
"""


def keeper(path: Path, name: str, n: int) -> subprocess.Popen[str]:
    """A process that keeps n evaluations one by one, and says so after each."""
    command = [sys.executable, "-c", KEEP, name, str(path), str(n)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_value_is_there_for_others_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "evaluations.sqlite"
    entry = Evaluation(-1.5, seconds=3.0, extra={"energy": 2.0, "gap": math.nan})
    with EvaluationCache(path, "one") as one, EvaluationCache(path, "two") as two:
        one.keep(KEY, {"a": entry})
        two.keep(KEY, {"a": Evaluation(9.0), "b": Evaluation(1.0)})
        found = two.lookup(["a", "b", "c"], KEY)
        assert (found["a"].value, found["a"].seconds, found["a"].source) == (-1.5, 3.0, "one")
        assert found["a"].extra["energy"] == 2.0 and math.isnan(found["a"].extra["gap"])
        assert found["b"].source == "" and "c" not in found
        assert two.lookup(["a"], "energy/weights-2") == {}


def test_what_another_time_may_mend_is_not_kept() -> None:
    with EvaluationCache(":memory:") as cache:
        cache.keep(KEY, {status: Evaluation(math.nan, status) for status in Status})
        kept = cache.lookup(list(Status), KEY)
        assert set(kept) == {Status.OK, Status.INVALID, Status.UNSUPPORTED}
        cache.keep(KEY, {Status.TIMEOUT: Evaluation(2.0)})
        assert cache.lookup([Status.TIMEOUT], KEY)[Status.TIMEOUT].value == 2.0


def test_several_processes_make_and_fill_one_file(tmp_path: Path) -> None:
    path, n = tmp_path / "evaluations.sqlite", 25
    processes = [keeper(path, name, n) for name in "abcd"]
    assert [process.wait() for process in processes] == [0] * 4
    with EvaluationCache(path) as cache:
        digests = [f"{name}-{i}" for name in "abcd" for i in range(n)]
        assert len(cache.lookup([*digests, "common"], KEY)) == 4 * n + 1
        assert cache.problems() == []


def test_what_was_kept_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.sqlite"
    process = keeper(path, "a", 100_000)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    with EvaluationCache(path) as cache:
        assert len(cache.lookup([f"a-{int(i)}" for i in said], KEY)) == len(said) >= 20
        assert cache.problems() == []


@pytest.mark.parametrize("kind", ["no database", "of a later version", "a run's store"])
def test_another_file_is_refused_in_words_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "evaluations.sqlite"
    if kind == "no database":
        path.write_text("not a database" * 100)
    elif kind == "a run's store":
        ExperienceStore(path).close()
    else:
        EvaluationCache(path).close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=str(path)):
        EvaluationCache(path)
    assert path.read_bytes() == before


def test_a_digest_is_that_of_all_that_a_property_may_read_to_a_step() -> None:
    coords = np.array([[0.0, 0.0, 0.0], [0.3, 0.5, 0.99999999]])
    crystal = Structure(Lattice.from_parameters(4, 5, 6, 80, 90, 100), ["Na", "Cl"], coords)
    matrix = crystal.lattice.matrix
    moved_on = Structure(Lattice(matrix + 1e-9), crystal.species, coords + np.array([1, 0, -1]))
    assert crystal_digest(moved_on) == crystal_digest(crystal)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = Structure(Lattice(matrix @ turn), crystal.species, coords)
    longer, moved = crystal.copy(), crystal.copy()
    longer.lattice = Lattice.from_parameters(4.0001, 5, 6, 80, 90, 100)
    moved.translate_sites([1], [0.0001, 0, 0])
    decorated = crystal.copy(site_properties={"magmom": [1.0, 0.0]})
    annotated = Structure(crystal.lattice, crystal.species, coords, properties={"pressure": 1.0})
    charged, oxidised = crystal.copy(), crystal.copy()
    charged.set_charge(1)
    oxidised.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    others = [turned, longer, moved, decorated, annotated, charged, oxidised, crystal * [1, 1, 2]]
    others.append(Structure.from_sites(crystal[::-1]))
    digests = {crystal_digest(s) for s in (crystal, *others)}
    assert len(digests) == 1 + len(others)
