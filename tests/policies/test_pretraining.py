"""Training falls, resumes exactly, and gives the same whatever the number of processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nucleate.errors import CheckpointError, InputError, NucleateError
from nucleate.policies import lattice
from nucleate.policies.checkpoint import load_policy
from nucleate.policies.pretraining import (
    MOST_SKIPPED,
    UNKNOWN_STABILITY,
    Pretraining,
    PretrainingConfig,
    add_noise,
    stability_class,
)
from nucleate.structures.datasets import TokenDataset
from nucleate.structures.parsing import RawRecord, to_cell
from nucleate.structures.preparation import prepare
from nucleate.structures.symmetry import tables
from nucleate.structures.wyckoff import decode
from tiny import condition, generator, tiny_policy

SETTINGS = {
    "batch_size": 16,
    "warmup_steps": 4,
    "learning_rate": 3e-3,
    "validate_every": 4,
    "ema": 0.9,
    "seed": 3,
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """Folder with ``train`` and ``val``, made of crystals that a policy drew."""
    folder = tmp_path_factory.mktemp("data")
    held = condition(2, 14, 62, 166, 221, max_atoms=24)
    structures, _ = decode(tiny_policy(5).sample(220, held, generator(0)).batch)
    records = [
        RawRecord("cell", to_cell(s), f"c{i}", {"e_hull": [0.0, 0.05, None][i % 3]})
        for i, s in enumerate(structures)
        if s is not None and s.is_valid(tol=0.6)
    ]
    assert len(records) > 80
    prepare(records[16:], folder / "train")
    prepare(records[:16], folder / "val")
    return folder


def training(datasets: Path, out: Path, **settings: object) -> Pretraining:
    return Pretraining(
        tiny_policy(0),
        TokenDataset.open(datasets / "train"),
        TokenDataset.open(datasets / "val"),
        out,
        PretrainingConfig(**{**SETTINGS, **settings}),  # type: ignore[arg-type]
    )


def test_loss_falls_and_the_best_average_is_kept(datasets, tmp_path):
    losses = []
    run = training(datasets, tmp_path, epochs=20, validate_every=4)
    before = run.validate()
    result = run.run(lambda metrics: losses.append(metrics["loss"]))
    assert len(losses) == run.total_steps == 20 * run.steps_per_epoch
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 3
    parts = [v for k, v in result.items() if k != "validation"]
    assert len(parts) == 4 and sum(parts) == pytest.approx(result["validation"], abs=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][-1] == run.total_steps
    best = min(row["validation"] for row in rows)
    assert best < before["validation"] - 0.5  # and then it learns crystals by heart
    kept = training(datasets, tmp_path / "again")
    kept.policy.network.load_state_dict(load_policy(tmp_path / "best").network.state_dict())
    kept.average = kept.policy.network.state_dict()
    assert kept.validate()["validation"] == pytest.approx(best, abs=1e-4)


def test_warm_up_and_cosine(datasets, tmp_path):
    run = training(datasets, tmp_path, epochs=10, warmup_steps=5, final_learning_rate=0.1)
    rates = [run.learning_rate(step) for step in range(run.total_steps)]
    np.testing.assert_allclose(rates[:5], 3e-3 * np.arange(1, 6) / 5)
    assert (np.diff(rates[5:]) < 0).all()
    assert rates[-1] == pytest.approx(3e-4, rel=0.1)


def test_data_order_follows_from_the_seed(datasets, tmp_path):
    one, two, other = (training(datasets, tmp_path, seed=s) for s in (3, 3, 4))
    for epoch in range(2):
        batches = one._epoch(epoch)
        np.testing.assert_array_equal(batches, two._epoch(epoch))
        rows = np.concatenate(batches)
        assert len(set(rows.tolist())) == len(rows) == 16 * one.steps_per_epoch
        assert not np.array_equal(batches, other._epoch(epoch))
        sites = one.train.n_sites[np.array(batches)]
        assert (sites.max(1) - sites.min(1)).mean() < 1
    assert not np.array_equal(one._epoch(0), one._epoch(1))
    tokens = [run._tokens(run._epoch(0)[0], 0) for run in (one, two)]
    assert torch.equal(tokens[0].frac_coords, tokens[1].frac_coords)
    assert torch.equal(tokens[0].parameters, tokens[1].parameters)


def test_noise_keeps_crystals_on_their_positions():
    batch = tiny_policy(5).sample(300, condition(max_atoms=60), generator(1)).batch
    config = PretrainingConfig(coordinate_noise=0.01, lattice_noise=0.02)
    noisy, parameters = add_noise(batch, np.random.default_rng(0), config)
    t, group = tables(), batch.space_group.astype(int)[:, None] - 1
    rotation, shift = (x[group, batch.wyckoff] for x in (t.first_rotation, t.first_translation))
    on_it = np.einsum("bsij,bsj->bsi", rotation, noisy.frac_coords.astype(float)) + shift
    off = np.abs(on_it - noisy.frac_coords) % 1.0
    present = batch.wyckoff > 0
    assert np.minimum(off, 1 - off)[present].max() < 1e-5
    assert (noisy.frac_coords >= 0).all() and (noisy.frac_coords < 1).all()
    assert (noisy.frac_coords[~present] == 0).all()
    step = (noisy.frac_coords - batch.frac_coords + 0.5) % 1.0 - 0.5
    free = t.free[group, batch.wyckoff]
    assert step[free].std() == pytest.approx(0.01, rel=0.1)
    fixed = (t.dof[group, batch.wyckoff] == 0) & present
    assert np.abs(step[fixed]).max() < 1e-6
    moved = parameters - lattice.to_parameters(batch.lattice, batch.n_atoms)
    assert moved.std() == pytest.approx(0.02, rel=0.1)
    same, _ = add_noise(batch, np.random.default_rng(0), config)
    np.testing.assert_array_equal(same.frac_coords, noisy.frac_coords)


def test_stability_classes():
    e_hull = np.array([-0.3, 0.0, 0.0249, 0.026, 0.0999, 0.11, 0.2499, 0.251, 8.0, np.nan])
    assert stability_class(e_hull).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, UNKNOWN_STABILITY]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_cut_off_and_resumed_ends_with_the_same_weights(datasets, tmp_path, dropout):
    class CutError(Exception):
        pass

    def cut(metrics: dict[str, float]) -> None:
        if metrics["step"] == 6:  # two steps after the last checkpoint
            raise CutError

    def made(out: str) -> Pretraining:
        run = training(datasets, tmp_path / out, epochs=3)
        run.policy = run.policy.__class__(tiny_policy(0, dropout=dropout).network)
        return Pretraining(run.policy, run.train, run.validation, run.folder, run.config)

    made("whole").run()
    with pytest.raises(CutError):
        made("cut").run(cut)
    again = made("cut")
    again.resume()
    assert again.step == 4
    again.run()
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [(tmp_path / name / "train.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    for left, right in zip(*rows, strict=True):
        left, right = json.loads(left), json.loads(right)
        for timing in ("crystals_per_second",):
            left.pop(timing), right.pop(timing)
        assert left == right


DRIVER = """
import json, os, sys
sys.path[:0] = json.loads(os.environ["TEST_PATHS"])
import torch
from pathlib import Path
from test_pretraining import training
torch.set_num_threads(1)
datasets, out, kill = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
world = int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    torch.distributed.init_process_group("gloo")
run = training(datasets, out, epochs=int(os.environ.get("EPOCHS", 2)))
if (out / "checkpoint.safetensors").exists():
    run.resume()
losses = []
def on_step(metrics):
    losses.append(metrics["loss"])
    if metrics["step"] == kill:
        os.kill(os.getpid(), 9)
run.run(on_step)
if run.rank == 0:
    (out / "losses.json").write_text(json.dumps(losses))
if world > 1:
    torch.distributed.destroy_process_group()
"""


def start(
    driver: Path, datasets: Path, out: Path, kill: int = 0, **environ: str
) -> subprocess.Popen:
    tests = Path(__file__).parents[1]
    environ = os.environ | {
        "TEST_PATHS": json.dumps([str(tests / "policies"), str(tests)]),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        **environ,
    }
    command = [sys.executable, str(driver), str(datasets), str(out), str(kill)]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("driver") / "driver.py"
    path.write_text(DRIVER)
    return path


def test_killed_at_once_and_resumed(datasets, driver, tmp_path):
    """The same with kill -9, in a process of its own."""
    process = start(driver, datasets, tmp_path / "killed", kill=7)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    for out in ("killed", "whole"):
        process = start(driver, datasets, tmp_path / out)
        assert process.communicate(timeout=300)[1] is not None and process.returncode == 0
    one, two = (weights(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_give_the_losses_of_one(datasets, driver, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "EPOCHS": "1"}
    runs = [start(driver, datasets, tmp_path / "two", RANK=str(i), **world) for i in range(2)]
    runs.append(start(driver, datasets, tmp_path / "one", EPOCHS="1"))
    for process in runs:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, two = (json.loads((tmp_path / n / "losses.json").read_text()) for n in ("one", "two"))
    assert len(one) > 3
    np.testing.assert_allclose(two[:6], one[:6], rtol=1e-5)  # before rounding grows
    np.testing.assert_allclose(two, one, rtol=1e-3)
    left, right = (weights(tmp_path / name) for name in ("one", "two"))
    for name in left:
        if name.startswith("average."):
            torch.testing.assert_close(left[name], right[name], atol=1e-3, rtol=1e-3)


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(datasets, tmp_path):
    run = training(datasets, tmp_path, epochs=2)
    clip, seen, moved = run._clip_gradients, [], []
    weight = next(run.policy.network.parameters())

    def one_bad() -> torch.Tensor:
        norm = clip()
        seen.append(weight.detach().clone())
        return norm * float("inf") if len(seen) == 2 else norm

    run._clip_gradients = one_bad
    counts = []
    run.run(lambda metrics: counts.append(metrics["skipped_steps"]))
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True, False] + [True] * (run.total_steps - 3)
    assert counts == [0] + [1] * (run.total_steps - 1)
    again = training(datasets, tmp_path)
    again.resume()
    assert again.skipped_steps == 1


def test_a_training_that_diverged_stops(datasets, tmp_path):
    run = training(datasets, tmp_path, epochs=50, validate_every=1000)
    with torch.no_grad():
        next(run.policy.network.parameters()).fill_(float("nan"))
    steps = []
    with pytest.raises(NucleateError, match="diverged") as raised:
        run.run(lambda metrics: steps.append(metrics["step"]))
    assert len(steps) == MOST_SKIPPED - 1
    assert "learning_rate" in raised.value.fix


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resumed_on_a_gpu(datasets, tmp_path):
    for out in ("whole", "cut"):
        run = training(datasets, tmp_path / out, epochs=2)
        run.policy.network.to("cuda")
        run = Pretraining(run.policy, run.train, run.validation, run.folder, run.config)
        run.total_steps = 4 if out == "cut" else run.total_steps
        run.run()
    again = training(datasets, tmp_path / "cut", epochs=2)
    again.policy.network.to("cuda")
    again = Pretraining(again.policy, again.train, again.validation, again.folder, again.config)
    again.resume()
    assert {value.device.type for value in again.average.values()} == {"cuda"}
    assert again.run()["validation"] == pytest.approx(run.validate()["validation"], abs=5)


def test_a_checkpoint_that_is_not_whole_is_refused(datasets, tmp_path):
    run = training(datasets, tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint"):
        run.resume()
    run.folder.mkdir(exist_ok=True)
    run.save()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="checkpoint") as raised:
        run.resume()
    assert raised.value.fix
    with pytest.raises(InputError, match="fewer than a batch"):
        training(datasets, tmp_path, batch_size=100_000)
