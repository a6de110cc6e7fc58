"""A run that was killed and resumed is the run that was not, and budgets are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from made_up import MadeUpPotential
from nucleate.algorithms.loop import Loop
from nucleate.algorithms.ppo import PPO
from nucleate.execution.meter import current_meter
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Linear
from nucleate.properties.composition import Density
from nucleate.properties.custom import CustomProperty
from nucleate.protocols import CostClass
from nucleate.recipe import Recipe
from nucleate.screen.screen import Screen
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex
from tiny import condition, tiny_policy

HELD = condition(2, 62, 166, 221, max_atoms=16)
BATCH, STEPS = 16, 5
TERMS = [
    {"property": "e_above_hull", "shaping": {"type": "clip", "low": -1, "high": 1}},
]
DENSITY = [
    {"property": "density", "shaping": {"type": "linear", "low": 0.0, "high": 20.0}},
]


class MadeUpEnergy(Density):
    """Numbers that depend on the crystal alone, half of them below 0, and cost nothing."""

    name, unit, key = "e_above_hull", "eV/atom", "made up"

    def evaluate(self, structures):
        scores = super().evaluate(structures)
        return replace(scores, value=np.sin(7 * scores.value))


def recipe(**sections: dict[str, Any]) -> Recipe:
    """Five steps of 16 crystals, with every option whose state must survive."""
    algorithm = {
        "ratio": "token",
        "inner_steps": 2,
        "minibatch": 8,
        "learning_rate": 3e-3,
        "kl_target": 0.5,
        "novelty_bonus": 0.3,
        "guard": {"action": "warn", "window": 2},
    }
    values: dict[str, Any] = {
        "seed": 5,
        "objective": {"terms": TERMS},
        "budget": {"batch_size": BATCH, "steps": STEPS},
        "output": {"checkpoint_every": 2, "tensorboard": False},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    values["algorithm"] = algorithm | values.get("algorithm", {})
    return Recipe.model_validate(values)


def make(run: RunDirectory, settings: Recipe) -> Loop:
    """The loop of a run, from where it stands."""
    properties = {"e_above_hull": MadeUpEnergy(), "density": Density()}
    objective = Objective.from_settings(settings.objective, run.store(), properties=properties)
    known = FormulaIndex(np.zeros(0, dtype=np.uint64))
    screen = Screen(settings.screen, objective.store, potential=MadeUpPotential(), training=known)
    loop = Loop(settings, tiny_policy(0), tiny_policy(0), objective, screen, HELD, known, run)
    loop.restore()
    return loop


def begin(folder: Path, settings: Recipe) -> RunDirectory:
    """Create or open."""
    if folder.exists():
        return RunDirectory.open(folder)
    return RunDirectory.create(folder.parent, folder.name, settings.model_dump(mode="json"))


def run_here(folder: Path, settings: Recipe | None = None) -> tuple[Loop, str]:
    """Run to the end in this process."""
    settings = settings or recipe()
    with begin(folder, settings) as run:
        loop = make(run, settings)
        reason = loop.run()
        loop.objective.close()
        return loop, reason


KILLS = {
    "before anything": ("sample", 0),
    "after the first sampling": ("sample", 1),
    "after sampling": ("sample", 4),
    "after scoring, before the update": ("update", 3),
    "after the update, before the record": ("record_step", 3),
    "after the record, before the log": ("log", 2),
    "in the middle of a line of the log": ("torn log", 4),
    "after the log, before the checkpoint": ("checkpoint", 2),
    "in the middle of writing the checkpoint": ("torn checkpoint", 1),
    "before the checkpoint has its name": ("rename", 1),
    "after the checkpoint, before the next step": ("prune", 1),
    "after the last step, before its checkpoint": ("checkpoint", 3),
    "twice": ("twice", 3),
}

DRIVER = """
import json, os, sys
sys.path[:0] = json.loads(os.environ["TEST_PATHS"])
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_loop as t
from nucleate.algorithms.ppo import PPO
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.store import checkpoint, rundir
from nucleate.store.experience import ExperienceStore
from nucleate.store.rundir import RunDirectory

def die(*args, **options):
    os.kill(os.getpid(), 9)

def after(owner, name, calls, act=die):
    '''Let a function be called some times, then die in its place.'''
    original, count = getattr(owner, name), [0]
    def wrapped(*args, **options):
        count[0] += 1
        return (act if count[0] > calls else original)(*args, **options)
    setattr(owner, name, wrapped)

def torn_log(run, step, metrics, **options):
    with (run.path / "log.jsonl").open("a") as stream:
        stream.write('{"step": %d, "rew' % step)
    die()

def torn_checkpoint(path, data):
    path.write_bytes(data[: len(data) // 2])
    die()

def arm(point, n):
    match point:
        case "sample": after(WyckoffPolicy, "sample", n)
        case "update" | "twice": after(PPO, "update", n)
        case "record_step": after(ExperienceStore, "record_step", n)
        case "log": after(RunDirectory, "log", n)
        case "torn log": after(RunDirectory, "log", n, torn_log)
        case "checkpoint": after(RunDirectory, "checkpoint", n - 1)
        case "torn checkpoint": after(checkpoint, "write_durably", 2 * n + 1, torn_checkpoint)
        case "rename": after(checkpoint, "fsync_directory", 2 * n)
        case "prune": after(rundir, "prune_checkpoints", n)

def child(folder, kill):
    pid = os.fork()
    if pid == 0:
        if kill:
            arm(*kill)
        t.run_here(folder)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

root, results = Path(sys.argv[1]), {}
t.run_here(root / "warm", t.recipe(budget={"steps": 1}))  # imports what the children need
results["whole"] = [child(root / "whole", None)]
for i, (name, kill) in enumerate(t.KILLS.items()):
    folder = root / f"killed-{i}"
    status = [child(folder, kill)]
    if kill[0] == "twice":
        status.append(child(folder, ("update", 1)))
    status.append(child(folder, None))
    results[name] = status
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, Path]:
    """A run that nothing stopped, and one killed with SIGKILL at each point and then resumed."""
    root = tmp_path_factory.mktemp("killed")
    (root / "driver.py").write_text(DRIVER)
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(root / "driver.py"), str(root)],
        env=os.environ
        | {
            "TEST_PATHS": json.dumps([str(tests / "algorithms"), str(tests)]),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, status in json.loads(done.stdout.splitlines()[-1]).items():
        assert status[:-1] == [9] * (len(status) - 1), (name, status, done.stderr)  # was killed
        assert status[-1] == 0, (name, done.stderr)  # came to its end
    return {"whole": root / "whole"} | {n: root / f"killed-{i}" for i, n in enumerate(KILLS)}


@pytest.fixture(scope="module")
def whole(killed) -> Path:
    """The folder of the run that nothing stopped."""
    return killed["whole"]


def contents(folder: Path) -> tuple[str, list[dict], list[dict], dict, set[str]]:
    """What must not depend on how often a run was killed."""
    timings = ("seconds_sampling", "seconds_scoring", "seconds_updating")
    timings += ("spent_cached", "spent_seconds")
    with RunDirectory.open(folder, read_only=True) as run:
        assert run.verify() == []
        log = [{k: v for k, v in row.items() if k not in timings} for row in run.read_log()]
        with run.store(read_only=True) as store:
            metrics = [
                {k: v for k, v in row.items() if k not in timings} for row in store.metrics()
            ]
            digest = store.content_digest()
        checkpoint = run.latest_checkpoint()
    assert checkpoint is not None and checkpoint.step == STEPS - 1
    state = {k: v for k, v in checkpoint.state.items() if k != "seconds"}
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    return digest, metrics, log, state, names


def equal(one: Any, two: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed_equals_uninterrupted(whole, killed, name):
    one, two = contents(whole), contents(killed[name])
    assert two[0] == one[0]  # every crystal, evaluation and reward
    assert [row["step"] for row in two[2]] == list(range(STEPS))
    for left, right in zip(one[1], two[1], strict=True):
        assert left == right
    for left, right in zip(one[2], two[2], strict=True):
        assert left == right
    assert one[3].keys() == two[3].keys()
    for part in one[3]:
        assert equal(one[3][part], two[3][part]), part
    assert one[4] == two[4]


def test_a_screened_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    stages = ["valid", "unique", "relaxed", {"type": "stable", "below": 2.0}, "novel"]
    settings = recipe(screen={"stages": stages})
    _, reason = run_here(tmp_path / "whole", settings)
    assert reason == f"{STEPS} steps done"
    original, calls = PPO.update, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(PPO, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_here(tmp_path / "stopped", settings)
    run_here(tmp_path / "stopped", settings)
    one, two = contents(tmp_path / "whole"), contents(tmp_path / "stopped")
    assert two[0] == one[0] and two[1] == one[1]
    assert equal(one[3], two[3])
    with RunDirectory.open(tmp_path / "whole", read_only=True) as run, run.store() as store:
        table = store.crystals("relaxed", "stable", "e_above_hull")
    passed = [status == "ok" for status in table["status"]]
    assert 0 < sum(passed) < len(passed)
    assert (table["stable"][passed] < 2.0).all() and np.isfinite(table["relaxed"][passed]).all()
    assert np.isnan(table["e_above_hull"][~np.array(passed)]).all()  # not handed on
    names = ["sampled", "decodable", "valid", "unique", "relaxed", "stable", "novel", "scored"]
    for row in one[2]:  # the log keeps the order
        assert list(row["funnel"]) == [*names, "new"]


def test_a_run_learns_and_records_all_it_did(whole):
    with RunDirectory.open(whole, read_only=True) as run, run.store(read_only=True) as store:
        metrics, table = store.metrics(), store.crystals("e_above_hull")
        log = run.read_log()
        checkpoint = run.latest_checkpoint()
    assert len(table["digest"]) == STEPS * BATCH and len(metrics) == len(log) == STEPS
    for step, row in enumerate(metrics):
        mine = table["step"] == step
        assert row["reward_mean"] == pytest.approx(table["reward"][mine].mean())
        stages = ("sampled", "decodable", "valid", "scored", "stable", "new")
        funnel = [row["funnel"][stage] for stage in stages]
        assert funnel[0] == BATCH and funnel == sorted(funnel, reverse=True)
        ok = np.array([status == "ok" for status in table["status"][mine]])
        assert row["funnel"]["scored"] == ok.sum()
        stable = ok & (table["e_above_hull"][mine] < 0.1)
        assert row["funnel"]["stable"] == stable.sum() == round(BATCH * row["stable_fraction"])
        assert not table["bonus"][mine][~stable].any()
        assert sum(row["failures"].values()) == BATCH - ok.sum()
        for name in ("kl", "entropy", "clip_fraction", "gradient_norm", "evaluations"):
            assert np.isfinite(row[name])
    assert metrics[-1]["evaluations"] == len(
        {d for d, s in zip(table["digest"], table["status"], strict=True) if s == "ok"}
    )
    assert 0 < sum(row["funnel"]["stable"] for row in metrics) < STEPS * BATCH
    assert table["bonus"].any()
    before = tiny_policy(0).network.state_dict()
    after = checkpoint.state["algorithm"]["network"]
    assert not torch.equal(before["species_bias"], after["species_bias"])


def test_resuming_a_finished_run_does_nothing(whole):
    before = contents(whole)
    loop, reason = run_here(whole)
    assert loop.step == STEPS and reason == f"{STEPS} steps done"
    assert contents(whole)[0] == before[0]


@pytest.mark.parametrize("evaluations", [16, 31, 50])
def test_never_more_evaluations_than_asked_for(tmp_path, evaluations):
    settings = recipe(budget={"steps": None, "evaluations": evaluations})
    loop, reason = run_here(tmp_path / "run", settings)
    with RunDirectory.open(tmp_path / "run", read_only=True) as run, run.store() as store:
        spent = store.evaluations_spent("e_above_hull")
        sampled = len(store.crystals()["digest"])
    assert spent <= evaluations < spent + BATCH
    assert str(spent) in reason
    assert sampled == loop.step * BATCH  # none is left half-way


@pytest.mark.parametrize(("name", "limit"), [("e_above_hull", 1), ("composition", 40)])
def test_a_limit_of_a_property_or_a_cost_class_ends_the_run(tmp_path, name, limit):
    settings = recipe(budget={"steps": None, "limits": {name: limit}})
    loop, reason = run_here(tmp_path / "run", settings)
    with RunDirectory.open(tmp_path / "run", read_only=True) as run, run.store() as store:
        per_step = [store.evaluations_spent("e_above_hull", step=k) for k in range(loop.step)]
        sampled = len(store.crystals()["digest"])
        log = run.read_log()
    assert sum(per_step[:-1]) < limit <= sum(per_step) < limit + BATCH
    assert reason == f"{sum(per_step)} evaluations of {name} spent"
    assert sampled == loop.step * BATCH  # none is left half-way
    for step, row in enumerate(log):
        spent = sum(per_step[: step + 1])
        assert row["spent"] == {
            "by_property": {"e_above_hull": spent},
            "by_cost": {"composition": spent},
        }
        assert row["spent_cached"]["by_property"] == {"e_above_hull": 0}
        assert row["spent_seconds"]["by_cost"]["composition"] > 0


class Costly(MadeUpEnergy):
    """Takes an hour for a crystal, or says so; stops the run at the crystal of some number."""

    cost, key = CostClass.DFT, "costly"

    def __init__(self, stops_at: int = -1):
        self.stops_at, self.asked = stops_at, 0

    def evaluate(self, structures):
        assert len(structures) == 1
        self.asked += 1
        if self.asked == self.stops_at:
            raise KeyboardInterrupt
        current_meter().add(3600.0)
        return super().evaluate(structures)


def run_costly(folder: Path, settings: Recipe, prop: Costly) -> str:
    with (
        begin(folder, settings) as run,
        run.cache("evaluations.sqlite") as cache,
        run.store() as store,
    ):
        objective = Objective.from_settings(
            settings.objective, store, cache, properties={"e_above_hull": prop}
        )
        known = FormulaIndex(np.zeros(0, dtype=np.uint64))
        screen = Screen(settings.screen, store)
        loop = Loop(settings, tiny_policy(0), tiny_policy(0), objective, screen, HELD, known, run)
        loop.restore()
        try:
            return loop.run()
        finally:
            objective.close()


def test_core_hours_are_a_budget(tmp_path):
    settings = recipe(budget={"steps": None, "core_hours": 20.0})
    reason = run_costly(tmp_path / "run", settings, Costly())
    hours = int(reason.removesuffix(" core-hours of evaluation spent"))
    assert 20 <= hours < 20 + BATCH


def test_stopped_in_the_middle_of_a_costly_batch_nothing_is_lost_and_nothing_differs(tmp_path):
    settings, whole = recipe(), Costly()
    run_costly(tmp_path / "whole runs" / "run", settings, whole)
    stopped, resumed = Costly(stops_at=BATCH + 5), Costly()
    with pytest.raises(KeyboardInterrupt):
        run_costly(tmp_path / "runs" / "run", settings, stopped)
    run_costly(tmp_path / "runs" / "run", settings, resumed)
    assert stopped.asked - 1 + resumed.asked == whole.asked
    repeated = Costly()
    run_costly(tmp_path / "runs" / "run-2", settings, repeated)
    assert repeated.asked == 0
    found = []
    for folder in ("whole runs/run", "runs/run", "runs/run-2"):
        with RunDirectory.open(tmp_path / folder, read_only=True) as run, run.store() as store:
            found.append(store.content_digest())
            (spent,) = store.spending()
            assert spent.evaluations == whole.asked
            assert spent.cached == (whole.asked if folder == "runs/run-2" else 0)
            assert spent.seconds == 3600.0 * (whole.asked - spent.cached)
    assert len(set(found)) == 1


def test_time_is_a_budget(tmp_path):
    settings = recipe(budget={"steps": None, "minutes": 1.0})
    with begin(tmp_path / "run", settings) as run:
        loop = make(run, settings)
        loop.seconds = 59.999999
        assert loop.run() == "1 minute passed"
        assert loop.step == 1
        loop.objective.close()
        again = make(run, settings)
        assert again._resumed_tokens is not None
        again._submit = None  # what was drawn ahead is not paid for once time is over
        assert again.run() == "1 minute passed"
        assert again.step == 1


def test_nothing_is_called_stable_where_stability_is_not_measured(tmp_path):
    settings = recipe(objective={"terms": DENSITY}, budget={"steps": 2})
    loop, _ = run_here(tmp_path / "run", settings)
    assert not loop.bonus.seen
    with RunDirectory.open(tmp_path / "run", read_only=True) as run, run.store() as store:
        assert store.crystals()["status"].tolist().count("ok") > 0
        assert not store.crystals()["bonus"].any()
        for row in store.metrics() + run.read_log():
            assert row["stable_fraction"] is None and row["new_fraction"] is None
            assert set(row["funnel"]) == {"sampled", "decodable", "valid", "scored"}
            assert row["scored_fraction"] > 0


def test_the_guard_stops_the_run_for_good_or_holds_it_nearer_to_the_prior(tmp_path):
    limits = {"window": 1, "min_sites": 1.0, "min_systems": 1.0, "min_entropy": 1.0}
    for action in ("stop", "widen"):
        settings = recipe(
            algorithm={
                "guard": {"action": action, **limits},
                "kl_target": None,
                "inner_steps": 1,
                "learning_rate": 0.01,
            },
            budget={"steps": 12},
        )
        loop, reason = run_here(tmp_path / action, settings)
        if action == "stop":
            assert reason.startswith("collapse: ") and loop.step < 12
            again, reason_again = run_here(tmp_path / action, settings)
            assert (again.step, reason_again) == (loop.step, reason)
        else:
            assert loop.step == 12
            assert loop.algorithm.kl_weight > settings.algorithm.kl_weight


@pytest.mark.parametrize("wanted", ["auto", True, False])
def test_tensorboard_as_the_recipe_says(tmp_path, wanted):
    pytest.importorskip("tensorboard")
    settings = recipe(output={"tensorboard": wanted}, budget={"steps": 1})
    run_here(tmp_path / "run", settings)
    assert (tmp_path / "run" / "tensorboard").exists() == (wanted is not False)


def test_crystals_that_fail_cost_only_themselves(tmp_path):
    """Half of them raise; the run goes on, counts them and keeps its numbers finite."""

    def moody(structures):
        if any(s.atomic_numbers[0] % 2 for s in structures):
            raise RuntimeError("odd")
        return [float(len(s)) for s in structures]

    settings = recipe(budget={"steps": 2})
    with begin(tmp_path / "run", settings) as run:
        loop = make(run, settings)
        shaping = Linear(type="linear", low=0, high=20)
        prop = CustomProperty(moody, key="moody")
        loop.objective = Objective([Term(prop, shaping)], "mean", -5.0, loop.objective.store)
        loop.run()
        metrics = loop.store.metrics()
        loop.objective.close()
    assert any("failed" in reason for row in metrics for reason in row["failures"])
    for row in metrics:
        assert row["funnel"]["scored"] > 0
        assert np.isfinite(row["reward_mean"]) and np.isfinite(row["kl"])
    assert all(w.isfinite().all() for w in loop.policy.network.parameters())
