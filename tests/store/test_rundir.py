"""The run's folder: one writer, a manifest that can be checked, logs that survive a crash."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nucleate.errors import CheckpointError, InputError, MissingDependencyError, StorageError
from nucleate.store.experience import Evaluation
from nucleate.store.filesystem import is_network_path
from nucleate.store.rundir import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "first", {"name": "x", "seed": 3})


def test_manifest_says_what_is_needed_to_repeat(tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"abc")
    run = RunDirectory.create(
        tmp_path, "r", {"seed": 3}, seeds={"policy": 3}, files={"prior": weights}, command=["n"]
    )
    manifest = run.manifest()
    assert manifest["recipe"] == {"seed": 3}
    assert manifest["seeds"] == {"policy": 3}
    assert manifest["command"] == ["n"]
    assert {"torch", "pymatgen", "numpy"} <= set(manifest["versions"])
    assert manifest["files"]["prior"]["sha256"].startswith("ba7816bf")
    assert manifest["cpu_count"] == os.cpu_count()
    run.store().close()
    assert run.verify() == []
    weights.write_bytes(b"abd")
    assert "prior" in run.verify()[0]


def test_names_are_not_taken_twice(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, "a", {}).close()
    with pytest.raises(InputError, match="exists"):
        RunDirectory.create(tmp_path, "a", {})
    assert RunDirectory.create(tmp_path, "a", {}, unique=True).path.name == "a-2"
    with pytest.raises(InputError, match="name"):
        RunDirectory.create(tmp_path, "../b", {})


def test_a_run_that_has_done_something_is_not_discarded(run: RunDirectory) -> None:
    with run.store() as store:  # values of a trial, which no step is charged for
        store.record(None, "key", {"a": Evaluation(1.0)}, name="x")
    with RunDirectory.create(run.path.parent, "spent", {}) as spent, spent.store() as store:
        store.record(0, "key", {"a": Evaluation(1.0)}, name="x")
    with RunDirectory.create(run.path.parent, "noted", {}) as noted:
        (noted.path / "notes.txt").write_text("mine")
    for each in (run, spent, noted):
        each.discard_unused()
    assert not run.path.exists()
    for each in (spent, noted):
        assert len(RunDirectory.open(each.path).manifest()["resumed"]) == 1


def test_one_writer_many_readers(run: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="in use") as caught:
        RunDirectory.open(run.path)
    assert str(os.getpid()) in caught.value.why
    RunDirectory.open(run.path, read_only=True).close()
    run.close()
    with RunDirectory.open(run.path) as again:
        assert len(again.manifest()["resumed"]) == 1
    assert not (run.path / "lock").exists()


def test_lock_of_a_killed_process_is_taken_over(run: RunDirectory) -> None:
    run.close()
    code = (
        "import os, signal; from nucleate.store.rundir import RunDirectory;"
        f"RunDirectory.open({str(run.path)!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (run.path / "lock").exists()
    RunDirectory.open(run.path).close()


@pytest.mark.parametrize(
    ("change", "stale"),
    [({"started": 1}, True), ({"host": "elsewhere"}, False), ({"pid": 2**30}, True)],
)
def test_lock_of_a_reused_number_or_another_host(
    run: RunDirectory, change: dict[str, object], stale: bool
) -> None:
    lock = run.path / "lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), **change}))
    if stale:
        RunDirectory.open(run.path).close()
    else:
        with pytest.raises(CheckpointError, match="in use"):
            RunDirectory.open(run.path)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        RunDirectory.open(tmp_path)


def test_a_run_closes_where_tensorboard_is_not_installed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run.log(0, {"reward/mean": 1.0})
    with pytest.raises(MissingDependencyError, match="nucleate\\[track\\]"):
        run.log(1, {"reward/mean": 1.0}, tensorboard=True)
    run.close()
    RunDirectory.open(run.path).close()


def test_log_survives_a_torn_line_and_goes_back(run: RunDirectory) -> None:
    for step in range(4):
        run.log(step, {"reward/mean": step / 2, "bad": float("nan")}, tensorboard=False)
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    assert [entry["step"] for entry in run.read_log()] == [0, 1, 2, 3]
    assert run.read_log()[1] == {"step": 1, "reward/mean": 0.5, "bad": None}
    run.truncate_log(2)
    run.log(3, {"reward/mean": 9.0}, tensorboard=False)
    assert [entry["step"] for entry in run.read_log()] == [0, 1, 2, 3]
    assert run.read_log()[-1]["reward/mean"] == 9.0


def test_damaged_log_is_reported(run: RunDirectory) -> None:
    run.store().close()
    (run.path / "log.jsonl").write_text('{"step": 0\n{"step": 1}\n')
    assert any("line 1" in problem for problem in run.verify())


def test_checkpoint_damage_is_reported(run: RunDirectory) -> None:
    run.store().close()
    path = run.checkpoint(1, {"x": 1})
    assert run.verify() == []
    (path / "state.json").write_text("{}")
    assert "step_00000001" in run.verify()[0]


def test_only_two_checkpoints_stay(run: RunDirectory) -> None:
    for step in range(4):
        run.checkpoint(step, {"x": step})
    assert len(list((run.path / "checkpoints").iterdir())) == 2


def test_no_write_permission(tmp_path: Path) -> None:
    root = tmp_path / "locked"
    root.mkdir()
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(root, os.W_OK):
        root.chmod(stat.S_IRWXU)
        file = tmp_path / "file"
        file.write_text("")
        root = file  # a superuser may write anywhere, but not below a file
    with pytest.raises(StorageError) as caught:
        RunDirectory.create(root, "a", {})
    assert str(root) in caught.value.what
    assert caught.value.fix


def test_network_file_systems_are_known(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {tmp_path}/net nfs4 rw 0 0\n")
    assert is_network_path(tmp_path / "net" / "run.sqlite", mounts)
    assert not is_network_path(tmp_path / "other", mounts)
    assert not is_network_path(tmp_path, tmp_path / "absent")
