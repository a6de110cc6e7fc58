"""The whole job on a tiny model: tune, judge with the real potential, write results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase.io import read

from made_up import MadeUpPotential
from nucleate import design, results
from nucleate.cli.tuning import show_run
from nucleate.errors import (
    CheckpointError,
    ConstraintError,
    InputError,
    NucleateError,
    RecipeError,
    UnscoredError,
)
from nucleate.evaluation.best import select_best
from nucleate.execution.local import ProcessPool
from nucleate.objectives.objective import Objective
from nucleate.policies.checkpoint import WEIGHTS, load_policy, save_policy
from nucleate.recipe import Recipe
from nucleate.results import JUDGING_SEEDS
from nucleate.samples import condition_from_recipe, sample
from nucleate.store.rundir import RunDirectory
from nucleate.structures.elements import SYMBOLS
from nucleate.structures.formulas import FormulaIndex
from tiny import tiny_policy

DALTON_PER_A3 = 1.66053907  # g/cm³
PRICE = "price_USD_per_kg"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder, with the formulas it knows."""
    folder = tmp_path_factory.mktemp("model")
    save_policy(tiny_policy(0), folder)
    FormulaIndex(np.arange(1, 9, dtype=np.uint64), "none").save(folder / design.FORMULAS)
    return folder


def recipe(folder, runs, /, **sections) -> Recipe:
    """A short run from the model in ``folder``; sections change single keys."""
    shaping = {"type": "linear", "low": 0.0, "high": 20.0}
    values = {
        "name": "dense",
        "workers": 1,
        "device": "cpu",
        "model": {"checkpoint": str(folder)},
        "condition": {"space_groups": [2, 221]},
        "objective": {"terms": [{"property": "density", "shaping": shaping}]},
        "algorithm": {"minibatch": 8, "novelty_bonus": 0, "guard": {"action": "off"}},
        "budget": {"batch_size": 12, "steps": 3},
        "evaluation": {"samples": 10, "seeds": [1]},
        "output": {"directory": str(runs), "best": 3, "tensorboard": False},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return Recipe.model_validate(values)


def test_the_whole_job(model, tmp_path, capsys):
    said, steps = [], []
    torch.manual_seed(0)
    path = design.tune(
        recipe(model, tmp_path), on_step=steps.append, on_stage=lambda line: said.append(line)
    )
    assert path == tmp_path / "dense"
    assert [row["step"] for row in steps] == [0, 1, 2]
    page = (path / "report.html").read_text()
    assert "dense" in page and len(page) > 20_000
    for name in ("base-1", "tuned-1"):
        table = pd.read_csv(path / "evaluation" / f"{name}.csv")
        assert len(table) == 10
        judged = table["score_status"] == "ok"
        assert judged.any() and table["e_above_hull_eV_per_atom"][judged].notna().all()
        summary = json.loads((path / "evaluation" / f"{name}.json").read_text())
        assert "chgnet" in json.dumps(summary)
    results = pd.read_csv(path / "evaluation" / "results.csv")
    assert len(results) and (path / "evaluation" / "results.md").read_text()
    assert list((path / "crystals" / "cif").glob("*.cif"))
    assert (path / "crystals" / "crystals.extxyz").is_file()
    # the tuned model loads and is another one; its base is named
    tuned = load_policy(path / "model")
    base = load_policy(model)
    assert tuned.metadata["weights_sha256"] != base.metadata["weights_sha256"]
    start = base.metadata["weights_sha256"]
    assert tuned.metadata["tuned"] == {"run": "dense", "steps": 3, "from": start}
    text = (path / "evaluation" / "results.md").read_text()
    assert "crystals unrelaxed" in text and "coordinate temperature 0.1" in text
    assert set(results["crystals"]) == {"unrelaxed", "as the objective has them"}
    show_run(path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "crystals unrelaxed;" in shown and "coordinate temperature 0.1" in shown
    assert (path / "model" / design.FORMULAS).is_file()
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["prior"] == base.metadata["weights_sha256"]
    assert manifest["ended"] == "3 steps done"
    # a run goes on only from the model it started with
    weights = (model / WEIGHTS).read_bytes()
    try:
        save_policy(tiny_policy(9), model)
        with pytest.raises(CheckpointError, match="not the one this run started from"):
            design.resume(path)
    finally:
        save_policy(tiny_policy(0), model)
    assert (model / WEIGHTS).read_bytes() == weights


def test_a_broken_model_is_refused_before_anything_is_made(model, tmp_path):
    broken = tmp_path / "broken"
    save_policy(tiny_policy(0), broken)
    (broken / WEIGHTS).write_bytes(b"x" * 100)
    runs = tmp_path / "runs"
    with pytest.raises(CheckpointError, match="truncated"):
        design.tune(recipe(broken, runs))
    assert not runs.exists()
    save_policy(tiny_policy(0), broken)  # whole, but without its formulas
    with pytest.raises((CheckpointError, InputError), match="formulas"):
        design.tune(recipe(broken, runs))
    assert not runs.exists() or not any(runs.iterdir())


# with a potential that costs nothing ---------------------------------------------------------

STABLE = {
    "objective": {
        "terms": [
            {"property": "e_above_hull", "shaping": {"type": "clip", "low": 0.0, "high": 5.0}}
        ]
    },
    "condition": {
        "space_groups": [2, 221],
        "max_atoms": 12,
        "elements": {"allow": ["Li", "Na", "Mg", "Fe", "O", "S", "Cl"]},
    },
    "budget": {"batch_size": 16, "steps": 1},
    "evaluation": {"samples": 16, "seeds": [0], "hulls": []},
    "output": {"report": False},
}


@pytest.fixture
def potential(monkeypatch) -> MadeUpPotential:
    """Stands in for worker processes."""
    made = MadeUpPotential()
    monkeypatch.setattr(design, "potential_pool", made.in_a_pool)
    return made


def summary(path, name: str) -> dict:
    return json.loads((path / "evaluation" / f"{name}.json").read_text())


def formulas_of(model, seed: int, n: int = 16) -> list[str]:
    """What a model draws for the judge."""
    policy = load_policy(model)
    asked = recipe(model, "runs", **STABLE)
    held = condition_from_recipe(asked, policy)
    drawn = sample(policy, n, held, seed=JUDGING_SEEDS + seed)
    return [drawn.batch.formula(i) for i in range(n)]


def judged_formulas(path, name: str) -> list[str]:
    table = pd.read_csv(path / "evaluation" / f"{name}.csv", keep_default_na=False)
    return table["formula"].tolist()


def test_a_prior_of_its_own_is_neither_base_nor_start(model, tmp_path, potential, monkeypatch):
    prior = tmp_path / "prior"
    other = tiny_policy(4)
    other.metadata = {"space_groups": {2: 1}, "data": "of the prior"}
    save_policy(other, prior)
    monkeypatch.chdir(tmp_path)
    path = design.tune(recipe(model, tmp_path / "runs", **STABLE, model={"prior": "prior"}))
    base, tuned = load_policy(model), load_policy(path / "model")
    sha = load_policy(prior).metadata["weights_sha256"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["prior"] == manifest["files"]["prior"]["sha256"] == sha
    assert manifest["recipe"]["model"]["prior"] == str(prior)
    assert tuned.metadata["data"] == base.metadata["data"] == "none"
    assert tuned.metadata["space_groups"] == base.metadata["space_groups"]
    assert tuned.metadata["tuned"]["from"] == base.metadata["weights_sha256"] != sha
    assert judged_formulas(path, "base-0") == formulas_of(model, 0) != formulas_of(prior, 0)
    monkeypatch.chdir("/")
    assert design.resume(path) == path  # the prior is found from anywhere
    save_policy(tiny_policy(5), prior)
    with pytest.raises(CheckpointError, match=r"the prior .* is not the one"):
        design.resume(path)


def test_files_that_settings_name_are_found_from_anywhere(model, tmp_path, monkeypatch):
    beside = tmp_path / "recipes"
    beside.mkdir()
    prices = "element,usd_per_kg\n" + "".join(f"{s},{n}\n" for n, s in enumerate(SYMBOLS, 1))
    (beside / "prices.csv").write_text(prices)
    term = {"property": "price", "settings": {"table": "prices.csv"}}
    term["shaping"] = {"type": "linear", "low": 0, "high": 100}
    written = recipe(model, tmp_path / "runs", objective={"terms": [term]})
    (beside / "mine.yaml").write_text(json.dumps(written.model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)
    path = design.tune("recipes/mine.yaml", overrides=["budget.steps=1"])
    recorded = json.loads((path / "manifest.json").read_text())["recipe"]["objective"]["terms"][0]
    assert recorded["settings"] == {"table": str(beside / "prices.csv")}
    monkeypatch.chdir("/")
    assert design.resume(path) == path


def test_nothing_that_the_run_has_computed_is_computed_again(
    model, tmp_path, potential, monkeypatch
):
    monkeypatch.setattr(results, "JUDGING_SEEDS", 0)  # the judge draws what tuning drew first
    asked: dict[str, int] = {}
    path = design.tune(
        recipe(model, tmp_path, **STABLE, seed=0),
        on_stage=lambda line: asked.update({line.split(" crystals of the ")[-1]: potential.asked}),
    )
    ended = asked["tuning ended: 1 step done"]
    tried = asked["tuning"]  # in the dry run
    counts = [summary(path, name)["funnel"]["scored"] for name in ("base-0", "tuned-0")]
    assert ended - tried == counts[0] > 3
    assert asked["tuned model, seed 0"] == ended  # the base model's crystals were known
    assert potential.asked == ended + counts[1]
    assert judged_formulas(path, "base-0") != judged_formulas(path, "tuned-0")


def test_results_state_the_condition_that_the_judge_drew_under(model, tmp_path, potential):
    sections = STABLE | {"evaluation": STABLE["evaluation"] | {"coordinate_temperature": 0.37}}
    path = design.tune(recipe(model, tmp_path, **sections))
    for name in ("base-0", "tuned-0"):
        said = summary(path, name)["settings"]["extra"]
        assert said["seed"] == 0
        assert said["condition"]["coordinate_temperature"] == 0.37
        assert said["condition"]["space_groups"] == [2, 221]
        assert said["condition"]["max_atoms"] == 12
    text = (path / "evaluation" / "results.md").read_text()
    assert "coordinate temperature 0.37" in text and "max atoms 12" in text


@pytest.mark.parametrize("relax", [False, True])
def test_the_judge_relaxes_as_the_evaluation_says_whatever_the_objective_does(
    model, tmp_path, potential, relax
):
    term = STABLE["objective"]["terms"][0] | {"settings": {"relax": not relax, "hull": "chgnet"}}
    sections = STABLE | {
        "objective": {"terms": [term]},
        "evaluation": STABLE["evaluation"] | {"relax": relax, "hulls": ["mp2020"]},
    }
    path = design.tune(recipe(model, tmp_path, **sections))
    settings = summary(path, "tuned-0")["settings"]
    assert settings["relaxed"] == relax
    assert list(settings["hulls"]) == ["chgnet", "mp2020"]
    word = "relaxed" if relax else "unrelaxed"
    assert f"crystals {word};" in (path / "evaluation" / "results.md").read_text()
    assert set(pd.read_csv(path / "evaluation" / "results.csv")["crystals"]) == {word}
    # with this potential every crystal relaxes to the same energy
    table = pd.read_csv(path / "evaluation" / "tuned-0.csv", keep_default_na=False, na_values=[""])
    energies = table["energy_eV_per_atom"].dropna()
    assert len(energies) > 3
    assert (energies.max() + 4.0 < 0.01) == relax


def test_the_best_crystals_are_those_of_all_seeds(model, tmp_path, potential, monkeypatch):
    seen = []
    monkeypatch.setattr(
        results,
        "select_best",
        lambda sets, *a, **k: seen.append(sets) or select_best(sets, *a, **k),
    )
    sections = STABLE | {
        "evaluation": STABLE["evaluation"] | {"seeds": [3, 4]},
        "output": STABLE["output"] | {"best": 100},
    }
    path = design.tune(recipe(model, tmp_path, **sections))
    assert [e.name for e in seen[0]] == ["tuned-3", "tuned-4"]
    table = pd.read_csv(path / "crystals" / "crystals.csv", keep_default_na=False)
    assert set(table["set"]) == {"tuned-3", "tuned-4"}
    # the objective asks for the judge's own energies: nothing more is needed for rewards
    (term,) = recipe(model, tmp_path, **sections).objective.terms
    energies = table["e_above_hull_eV_per_atom"].to_numpy()
    np.testing.assert_allclose(table["reward"], term.shaping(energies))
    assert table["rank"].tolist() == list(range(1, len(table) + 1))


def test_the_best_crystals_are_those_of_the_highest_reward(model, tmp_path, potential):
    sections = STABLE | {"evaluation": STABLE["evaluation"] | {"objective_samples": 8}}
    term = {"property": "density", "shaping": {"type": "linear", "low": 0.0, "high": 20.0}}
    sections |= {"objective": {"terms": [term]}, "algorithm": {"novelty_bonus": 0}}
    path = design.tune(recipe(model, tmp_path, **sections))
    table = pd.read_csv(path / "crystals" / "crystals.csv", keep_default_na=False)
    said = pd.read_csv(path / "evaluation" / "objective-tuned-0.csv", keep_default_na=False)
    known = said[said["status"] == "ok"]["reward"].sort_values(ascending=False)
    assert len(table) >= 2 and set(table["reward"]) <= set(known)
    for _, rows in table.groupby("novel"):  # here nothing is asked of a crystal but to be new
        assert rows["reward"].is_monotonic_decreasing
    assert table["novel"].astype(str).tolist() == sorted(table["novel"].astype(str), reverse=True)
    text = (path / "crystals" / table["cif"][0]).read_text()
    assert text.startswith(f"# rank 1, reward {table['reward'][0]:.6g}")


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_best_crystals_are_those_of_the_whole_run_too(model, tmp_path, potential, relaxed):
    term = {"property": "density", "shaping": {"type": "linear", "low": 0.0, "high": 20.0}}
    sections = STABLE | {
        "objective": {"terms": [term]},
        "budget": {"batch_size": 16, "steps": 2},
        "output": {"report": True, "best": 12},
        "screen": {"stages": ["valid", *["relaxed"] * relaxed], "potential": "made up"},
    }
    said: list[str] = []
    path = design.tune(recipe(model, tmp_path, **sections), on_stage=said.append)
    table = pd.read_csv(path / "crystals" / "crystals.csv", keep_default_na=False)
    assert set(table["set"]) == {"run", "tuned-0"}
    assert table["e_above_hull_eV_per_atom"].ne("").all()
    of_run = table[table["set"] == "run"].astype({"step": int})
    assert set(of_run["step"]) <= {0, 1} and not of_run["formula"].duplicated().any()
    assert (of_run["relaxed"] == relaxed).all()
    assert not table["relaxed"][table["set"] != "run"].any()
    manifest = json.loads((path / "manifest.json").read_text())
    with RunDirectory.open(path, read_only=True) as run, run.store(read_only=True) as store:
        rows = pd.DataFrame(store.crystals("density"))
    good = rows[rows["status"] == "ok"].drop_duplicates("digest")
    assert manifest["best"]["evaluated"] == len(good)
    assert manifest["best"]["new_formulas"] == good["formula"].nunique() >= len(of_run)
    judged = pd.read_csv(path / "evaluation" / "objective-tuned-0.csv")
    assert manifest["best"]["samples"] == (judged["status"] == "ok").sum() > 0
    assert not manifest["best"]["stable"]
    assert of_run["reward"].iloc[0] == good["reward"].max()
    rows = rows.set_index(["step", "position"])
    frames = read(path / "crystals" / "crystals.extxyz", ":")
    for i, row in of_run.iterrows():  # the numbers are those of the crystal in the file
        found = rows.loc[row["step"], row["sample"]]
        assert (found["formula"], found["reward"]) == (row["formula"], row["reward"])
        density = frames[i].get_masses().sum() / frames[i].get_volume() * DALTON_PER_A3
        assert density == pytest.approx(found["density"], rel=1e-3)
    assert f"best crystals: {len(of_run)} of the {len(good)} that the run evaluated" in said[-2]
    assert f"Of the {len(table)} shown here the run found {len(of_run)}." in (
        path / "report.html"
    ).read_text(encoding="utf-8")
    # a run that goes on after all was done chooses the same crystals
    before = {file: file.read_bytes() for file in (path / "crystals").rglob("*.*")}
    design.resume(path)
    assert before == {file: file.read_bytes() for file in (path / "crystals").rglob("*.*")}


def test_where_the_run_found_nothing_new_the_best_crystals_are_samples(
    model, tmp_path, potential, monkeypatch
):
    class Everything(FormulaIndex):
        def contains(self, keys):
            return np.ones(len(keys), dtype=bool)

    everything = Everything(np.array([1], dtype=np.uint64), "all")
    monkeypatch.setattr(design, "training_formulas", lambda *_: everything)
    path = design.tune(recipe(model, tmp_path, **STABLE))
    assert json.loads((path / "manifest.json").read_text())["best"]["new_formulas"] == 0
    table = pd.read_csv(path / "crystals" / "crystals.csv", keep_default_na=False)
    assert set(table["set"]) == {"tuned-0"} and not table["novel"].any()


def test_a_run_goes_on_only_with_the_properties_it_began_with(
    model, tmp_path, potential, monkeypatch
):
    path = design.tune(recipe(model, tmp_path, **STABLE))
    before = json.loads((path / "manifest.json").read_text())["properties"]
    assert before["e_above_hull"].startswith("e_above_hull/1/made up-0000")
    monkeypatch.setattr(design, "potential_pool", MadeUpPotential("1" * 64).in_a_pool)
    with pytest.raises(CheckpointError, match="'e_above_hull' is not the one"):
        design.resume(path)
    monkeypatch.setattr(design, "potential_pool", potential.in_a_pool)
    assert design.resume(path) == path


def test_a_run_goes_on_only_with_the_formulas_it_began_with(model, tmp_path, potential):
    path = design.tune(recipe(model, tmp_path, **STABLE))
    file = model / design.FORMULAS
    before = file.read_bytes()
    try:
        FormulaIndex(np.arange(1, 5, dtype=np.uint64), "none").save(file)
        with pytest.raises(CheckpointError, match="the formulas"):
            design.resume(path)
        file.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            design.resume(path)
    finally:
        file.write_bytes(before)
    assert design.resume(path) == path


def test_a_run_of_another_release_is_refused_in_words(model, tmp_path, potential):
    path = design.tune(recipe(model, tmp_path, **STABLE))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["recipe"]["algorithm"]["momentum"] = 0.9
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="release that wrote it"):
        design.resume(path)


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"evaluation": {"hulls": ["mp2021"]}}, InputError, "mp2021"),
        ({"algorithm": {"novelty_bonus": 0.5}}, RecipeError, "novelty_bonus"),
        ({"device": "cuda:64"}, RecipeError, "'cuda:64' is not there"),
        ({"condition": {"space_groups": [230], "max_atoms": 4}}, ConstraintError, "230"),
        ({"model": {"prior": "gone"}}, CheckpointError, "gone"),
    ],
)
def test_what_can_not_work_is_refused_before_a_folder_is_made(
    model, tmp_path, potential, sections, error, words
):
    with pytest.raises(error, match=words):
        design.tune(recipe(model, tmp_path / "runs", **sections))
    assert not (tmp_path / "runs").exists() and potential.asked == 0


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "found"),
    [
        ("auto", 0, True, "cpu"),
        ("auto", 2, False, "cuda"),
        ("cpu", 2, True, "cpu"),
        ("cuda", 1, False, "cuda"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
        ("cuda", 0, True, "no CUDA device"),
        ("cuda:1", 1, False, "1 CUDA device"),
        ("mps", 2, False, "no Apple GPU"),
    ],
)
def test_a_device_is_there_or_refused(monkeypatch, name, cuda, mps, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if " " not in found:
        assert design.find_device(name) == found
    else:
        with pytest.raises(RecipeError, match=f"{name}(.|\n)*{found}(.|\n)*device: auto"):
            design.find_device(name)


# several terms and filters ------------------------------------------------------------------

TRADE_OFF = {
    "filters": [{"property": "density", "min": 1.0}],
    "combine": "weighted",
    "terms": [
        {
            "property": "density",
            "shaping": {"type": "linear", "low": 0.0, "high": 20.0},
            "weight": 2.0,
        },
        {
            "property": "price",
            "shaping": {"type": "log", "low": 0.1, "high": 1e5, "direction": "minimise"},
        },
    ],
}


def test_a_trade_off_is_tracked_compared_and_survives_interruption(model, tmp_path, potential):
    sections = STABLE | {
        "objective": TRADE_OFF,
        "budget": {"batch_size": 16, "steps": 3},
        "output": {"report": True, "checkpoint_every": 1},
    }
    said: list[str] = []
    path = design.tune(recipe(model, tmp_path, **sections), on_stage=said.append)
    assert any(line.startswith("  density: a value for 4 of 4") for line in said)
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    volumes = [line["hypervolume"] for line in lines]
    assert 0 < volumes[0] <= volumes[1] <= volumes[2] < 1
    compared = json.loads((path / "evaluation" / "comparison.json").read_text())["objective"]
    assert compared["n"] == 16
    for side in ("base", "tuned"):
        table = pd.read_csv(path / "evaluation" / f"objective-{side}-0.csv", keep_default_na=False)
        ok = table[table["status"] == "ok"]
        density, price = (ok[key].astype(float) for key in ("density_g_per_cm3", PRICE))
        front = compared["pareto"][side]["front"]
        for row in front:  # nothing is denser and cheaper
            better = (density > row["values"][0]) & (price < row["values"][1])
            assert not better.any()
        assert len(front) == compared["pareto"][side]["size"] > 0
    assert "| hypervolume |" in (path / "evaluation" / "results.md").read_text()
    assert "pareto_size" in set(pd.read_csv(path / "evaluation" / "results.csv")["quantity"])
    front = pd.read_csv(path / "crystals" / "pareto.csv", keep_default_na=False)
    assert len(front) == lines[-1]["pareto_size"]
    assert all((path / "crystals" / name).is_file() for name in front["cif"])
    assert "Hypervolume" in (path / "report.html").read_text()
    # the front of a run that goes on is that of all its steps
    with RunDirectory.open(path) as run, run.store() as store:
        objective = Objective.from_settings(
            Recipe.model_validate(run.manifest()["recipe"]).objective, store
        )
        assert objective.front().hypervolume == volumes[-1]
        store.rollback(1)
        assert objective.front().hypervolume == volumes[1]


def test_a_property_that_can_not_work_ends_a_run_before_it_begins(model, tmp_path, potential):
    (tmp_path / "lost.py").write_text("def lost(structures):\n    raise OSError('no table')\n")
    shaping = {"type": "linear", "low": 0.0, "high": 1.0}
    term = {"property": f"{tmp_path}/lost.py:lost", "shaping": shaping}
    potential.pool = ProcessPool(1, potential=None)
    with (
        potential.pool,
        pytest.raises(NucleateError, match=r"'lost' failed on all 4(.|\n)*no table"),
    ):
        design.tune(recipe(model, tmp_path, **STABLE | {"objective": {"terms": [term]}}))
    assert not (tmp_path / "dense").exists()


def test_a_run_that_could_score_nothing_ends_as_an_error_and_is_kept(model, tmp_path, potential):
    (tmp_path / "none.py").write_text(
        "def none(structures):\n    return [None] * len(structures)\n"
    )
    term = {
        "property": f"{tmp_path}/none.py:none",
        "shaping": {"type": "linear", "low": 0, "high": 1},
    }
    sections = {"objective": {"terms": [term]}, "budget": {"batch_size": 12, "steps": 3}}
    potential.pool = ProcessPool(1, potential=None)
    path = tmp_path / "dense"
    asked = recipe(model, tmp_path, **sections)
    for begin in (lambda: design.tune(asked), lambda: design.resume(path)):
        with potential.pool, pytest.raises(UnscoredError) as caught:
            begin()
        assert str(path) in caught.value.what
        assert "of 12 crystals: unsupported: none gave no value" in caught.value.why
        assert (path / "run.sqlite").is_file() and not (path / "model").exists()


def test_a_property_that_can_not_be_made_leaves_no_folder(model, tmp_path, potential):
    term = {"property": "price", "settings": {"table": "gone.csv"}}
    term["shaping"] = {"type": "linear", "low": 0.0, "high": 1.0}
    made: list[Path] = []
    with pytest.raises(NucleateError, match=r"gone\.csv"):
        design.tune(recipe(model, tmp_path, objective={"terms": [term]}), on_run=made.append)
    assert made == [tmp_path / "dense"] and not made[0].exists()


def test_a_recipe_that_a_run_cannot_use_is_told_by_its_key(tmp_path: Path) -> None:
    made = RunDirectory.create(tmp_path, "old", {"name": "old", "budget": {"minuts": 1}})
    made.close()
    with pytest.raises(CheckpointError) as caught:
        design.recipe_of_run(made.path)
    assert "budget.minuts" in caught.value.why
