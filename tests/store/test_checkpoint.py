"""Checkpoints: any nesting comes back, and damage is seen."""

from __future__ import annotations

import errno
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nucleate.errors import CheckpointError, StorageError
from nucleate.store import checkpoint as module
from nucleate.store.checkpoint import (
    checkpoints,
    latest_checkpoint,
    pack_state,
    prune_checkpoints,
    read_checkpoint,
    unpack_state,
    write_checkpoint,
)

plain = (
    st.none() | st.booleans() | st.integers(-(2**128), 2**128) | st.text(max_size=5) | st.floats()
)
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(nested)
def test_nesting_comes_back(state: Any) -> None:
    tensors, structure = pack_state(state)
    assert repr(unpack_state(tensors, structure)) == repr(state)


def test_training_state_comes_back_and_goes_on_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        net = torch.nn.Linear(3, 2)
        return net, torch.optim.Adam(net.parameters(), lr=0.1)

    def train(net: torch.nn.Linear, adam: torch.optim.Adam, rng: torch.Generator) -> None:
        for _ in range(3):
            adam.zero_grad()
            net(torch.randn(4, 3, generator=rng)).square().sum().backward()
            adam.step()

    net, adam = make()
    rng, numpy_rng = torch.Generator().manual_seed(1), np.random.default_rng(2)
    train(net, adam, rng)
    state = {
        "net": net.state_dict(),
        "adam": adam.state_dict(),
        "torch": rng.get_state(),
        "numpy": numpy_rng.bit_generator.state,
        "array": np.arange(3, dtype=np.int16),
        "ema": math.inf,
    }
    path = write_checkpoint(tmp_path, 12, state)
    train(net, adam, rng)
    drawn = numpy_rng.random(3)

    read = read_checkpoint(path)
    assert read.step == 12
    assert read.state["array"].dtype == np.int16
    assert read.state["ema"] == math.inf
    other, other_adam = make()
    other.load_state_dict(read.state["net"])
    other_adam.load_state_dict(read.state["adam"])
    other_rng, other_numpy = torch.Generator(), np.random.default_rng()
    other_rng.set_state(read.state["torch"])
    other_numpy.bit_generator.state = read.state["numpy"]
    train(other, other_adam, other_rng)
    assert torch.equal(net.weight, other.weight)
    np.testing.assert_array_equal(other_numpy.random(3), drawn)


def test_what_can_not_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match="set at /a/1"):
        pack_state({"a": [1, {2}]})


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_falls_back_to_the_previous_one(tmp_path: Path, name: str, damage: str) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step, {"x": torch.full((4,), float(step)), "step": step})
    file = tmp_path / "step_00000002" / name
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="step_00000002"):
        read_checkpoint(file.parent)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state["step"]) == (1, 1)
    assert len(found.skipped) == 1
    assert name in found.skipped[0]


def test_none_left_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    path = write_checkpoint(tmp_path, 1, {})
    (path / "state.json").write_bytes(b"")
    (write_checkpoint(tmp_path, 2, {}) / "state.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 2") as caught:
        latest_checkpoint(tmp_path)
    assert caught.value.why.endswith("altered.") and caught.value.why.count(".; ") == 0


def test_full_disk_keeps_the_old_ones_and_leaves_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 1, {"x": 1})
    real = module.write_durably

    def full(path: Path, data: bytes) -> None:
        if path.name == "state.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(module, "write_durably", full)
    with pytest.raises(StorageError, match="space"):
        write_checkpoint(tmp_path, 2, {"x": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_same_step_again_replaces_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, {"x": step})
    write_checkpoint(tmp_path, 3, {"x": "again"})
    (tmp_path / ".step_00000004.99.tmp").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    assert read_checkpoint(checkpoints(tmp_path)[0]).state == {"x": "again"}


def test_rundir_warns_of_the_skipped_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from nucleate.store.rundir import RunDirectory

    with RunDirectory.create(tmp_path, "run", {}) as run:
        run.checkpoint(1, {"x": 1})
        (run.checkpoint(2, {"x": 2}) / "state.safetensors").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            found = run.latest_checkpoint()
    assert found is not None
    assert found.step == 1
    assert "step_00000002" in caplog.text
