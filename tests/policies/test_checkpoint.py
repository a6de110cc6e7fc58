"""A policy on disk is whole and the one that was saved, or it is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nucleate.errors import CheckpointError, StorageError
from nucleate.policies.checkpoint import (
    CARD,
    WEIGHTS,
    load_policy,
    resolve,
    save_policy,
    sha256,
    write_atomic,
)
from tiny import condition, generator, tiny_policy


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved policy."""
    save_policy(tiny_policy(), tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(folder):
    before, after = tiny_policy(), load_policy(folder)
    for name, tensor in before.network.state_dict().items():
        assert torch.equal(after.network.state_dict()[name], tensor)
    assert after.network.config == before.network.config and not after.network.training
    assert after.metadata["weights_sha256"] == sha256(folder / WEIGHTS)
    assert after.metadata["data"] == "none"
    assert after.training_space_groups()[62] == pytest.approx(0.2)
    one, two = (p.sample(20, condition(), generator(0)) for p in (before, after))
    assert torch.equal(one.log_prob, two.log_prob)
    again = save_policy(after, folder.parent / "again")
    assert again == after.metadata["weights_sha256"]
    assert resolve(folder / WEIGHTS) == folder
    assert sorted(p.name for p in folder.iterdir()) == [CARD, WEIGHTS]


def _card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps(card))


def _truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def _wider(folder: Path) -> None:
    config = json.loads((folder / CARD).read_text())["config"]
    _card(folder, config=config | {"width": 64})


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_truncate, "truncated"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "truncated"),
        (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
        (_flip, "sha256"),
        (_wider, "don't fit"),
        (lambda f: _card(f, network="sight"), "unknown network 'sight'"),
        (lambda f: _card(f, format="other"), "format"),
        (lambda f: _card(f, config={"wide": 3}), CARD),
        (lambda f: _card(f, config={"width": "x"}), CARD),
        (lambda f: _card(f, config={"width": 33, "heads": 2}), CARD),
        (lambda f: _card(f, metadata=[1]), CARD),
        (lambda f: (f / CARD).write_text("{"), CARD),
        (lambda f: (f / CARD).write_text("[]"), CARD),
        (lambda f: (f / CARD).write_bytes(b"\xff\xfe\x00"), CARD),
    ],
)
def test_a_broken_policy_is_refused(folder, damage, what):
    damage(folder)
    with pytest.raises(CheckpointError, match=what) as raised:
        load_policy(folder)
    assert raised.value.fix


def test_no_policy_there(tmp_path):
    with pytest.raises(CheckpointError, match="no policy at") as raised:
        load_policy(tmp_path)
    assert "base" in raised.value.fix
    with pytest.raises(CheckpointError, match="bose") as raised:
        load_policy("bose")
    assert raised.value.fix == "Did you mean 'base'?"


def test_nothing_is_half_written(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left") as raised:
        write_atomic(folder / WEIGHTS, fails)
    assert WEIGHTS in raised.value.what and raised.value.fix
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_who_may_read_a_policy_is_for_the_umask_to_say(tmp_path):
    before = os.umask(0o027)
    try:
        save_policy(tiny_policy(), tmp_path)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


def test_a_full_disk_leaves_the_old_policy(folder):
    """A limit on the size of files stands in for the disk."""
    script = f"""
import resource, signal, sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from pathlib import Path
from tiny import tiny_policy
from nucleate.errors import StorageError
from nucleate.policies.checkpoint import save_policy
policy = tiny_policy(5)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_policy(policy, Path(sys.argv[1]))
except StorageError as error:
    print("refused:", error.what)
"""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith("refused: can't write")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    load_policy(folder)


def test_the_card_of_the_shipped_model_is_that_of_its_files():
    folder = resolve("base")
    metadata = json.loads((folder / CARD).read_text())["metadata"]
    text = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(np.load(folder / 'formulas.npy')):,} reduced formulas" in text
    assert f"{metadata['data_crystals']:,} training crystals" in text
    tested = metadata["test_nats_per_crystal"]["all"]
    assert f"{metadata['test_crystals']:,} crystals, the shipped weights: {tested:.2f} nats" in text
    assert sha256(folder / WEIGHTS) == json.loads((folder / CARD).read_text())["weights_sha256"]
