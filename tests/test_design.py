"""The whole job on a tiny model: tune, judge with the real potential, write results."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from nucleate import design
from nucleate.errors import CheckpointError, InputError
from nucleate.policies.checkpoint import WEIGHTS, load_policy, save_policy
from nucleate.recipe import Recipe
from nucleate.structures.formulas import FormulaIndex
from tiny import condition, tiny_policy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder, with the formulas it knows."""
    folder = tmp_path_factory.mktemp("model")
    save_policy(tiny_policy(0), folder)
    FormulaIndex(np.arange(1, 9, dtype=np.uint64), "none").save(folder / design.FORMULAS)
    return folder


def recipe(model, runs, **sections) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "dense",
            "workers": 1,
            "device": "cpu",
            "model": {"checkpoint": str(model)},
            "condition": {"space_groups": [2, 221]},
            "objective": {
                "terms": [
                    {
                        "property": "density",
                        "shaping": {"type": "linear", "low": 0.0, "high": 20.0},
                    }
                ]
            },
            "algorithm": {"minibatch": 8, "guard": {"action": "off"}},
            "budget": {"batch_size": 12, "steps": 3},
            "evaluation": {"samples": 10, "seeds": [1]},
            "output": {"directory": str(runs), "best": 3, "tensorboard": False},
            **sections,
        }
    )


def test_the_whole_job(model, tmp_path):
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
        assert judged.any() and table["e_above_hull"][judged].notna().all()
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
    assert tuned.metadata["tuned"] == {"run": "dense", "steps": 3}
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


def test_samples_keep_their_order_and_their_seed(model):
    policy = load_policy(model)
    held = condition(2, 62, 221, max_atoms=16)
    one, two = (design.sample(policy, 30, held, seed=4) for _ in range(2))
    assert len(one.structures) == len(one.reasons) == len(one.log_prob) == len(one.batch) == 30
    assert [one.batch.digest(i) for i in range(30)] == [two.batch.digest(i) for i in range(30)]
    for i, structure in enumerate(one.structures):
        assert structure is not None
        assert structure.composition.reduced_formula == one.batch.formula(i)
    other = design.sample(policy, 30, held, seed=5)
    assert other.batch.digest(0) != one.batch.digest(0)
    chunked = design.sample(policy, design.SAMPLE_CHUNK + 7, held, seed=4)
    assert len(chunked.structures) == design.SAMPLE_CHUNK + 7


def test_the_default_condition_has_the_groups_of_the_data_and_nothing_radioactive():
    held = design.default_condition(tiny_policy())
    np.testing.assert_array_equal(np.flatnonzero(held.space_groups), [2, 62, 225])
    assert not held.elements[[43, 61, 84, 92, 94]].any() and held.elements[[1, 26, 83]].all()


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
