"""Models and files judged from Python, with a potential that costs nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from made_up import MadeUpPotential
from nucleate import judging
from nucleate.errors import InputError
from nucleate.policies.checkpoint import FORMULAS, save_policy
from nucleate.recipe import ConditionSettings
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.writing import write_extxyz
from tiny import tiny_policy

HELD = ConditionSettings(space_groups=(221,), max_atoms=8, coordinate_temperature=0.3)


def caesium_chloride(a: float) -> Structure:
    return Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture
def potential(monkeypatch) -> MadeUpPotential:
    made = MadeUpPotential()
    monkeypatch.setattr(judging, "potential_pool", made.in_a_pool)
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two of them."""
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("model"))
        save_policy(tiny_policy(seed), folders[-1])
        FormulaIndex(np.zeros(0, dtype=np.uint64), "none").save(folders[-1] / FORMULAS)
    return folders


def test_results_state_the_condition_of_the_call(models, potential, tmp_path):
    result = judging.evaluate(
        models[0], against=models[1], n=12, seeds=(1, 2), condition=HELD, out=tmp_path / "out"
    )
    for evaluation in (*result.evaluations, *result.against):
        said = evaluation.summary["settings"]["extra"]
        assert said["condition"]["coordinate_temperature"] == 0.3
        assert said["condition"]["max_atoms"] == 8
        assert evaluation.table["n_atoms"].max() <= 8
    assert [e.summary["settings"]["extra"]["seed"] for e in result.evaluations] == [1, 2]
    assert result.comparison["tuned"]["settings"]["extra"]["seeds"] == [1, 2]
    assert "seed" not in result.comparison["tuned"]["settings"]["extra"]
    assert "novel against: formulas of none" in result.markdown
    assert "Drawn with space groups 221; max atoms 8" in result.markdown
    assert "coordinate temperature 0.3" in result.markdown and "unrelaxed" in result.markdown
    written = json.loads((tmp_path / "out" / "judged-1.json").read_text())
    assert written["settings"]["extra"]["condition"] == HELD.model_dump(mode="json")


def test_a_model_against_itself_is_computed_once(models, potential):
    result = judging.evaluate(models[0], against=models[0], n=12, seeds=(1, 2), condition=HELD)
    valid = sum(e.summary["fractions"]["valid"]["count"] for e in result.evaluations)
    assert 0 < potential.asked <= valid
    for row in result.comparison["rows"]:
        assert row["base"] == row["tuned"]


def test_equal_crystals_of_files_are_computed_once_and_no_condition_is_claimed(
    models, potential, tmp_path
):
    crystals = [caesium_chloride(a) for a in (3.9, 4.1, 3.9, 4.2)]
    write_extxyz(crystals, tmp_path / "mine.extxyz")
    result = judging.evaluate(tmp_path / "mine.extxyz")
    assert potential.asked == 3
    (evaluation,) = result.evaluations
    assert evaluation.summary["n"] == 4
    assert evaluation.summary["fractions"]["valid"]["count"] == 4
    assert evaluation.table["unique"].sum() == 1
    assert evaluation.summary["settings"]["extra"]["source"].endswith("mine.extxyz")
    assert "condition" not in evaluation.summary["settings"]["extra"]
    compared = judging.evaluate(tmp_path / "mine.extxyz", against=models[0], condition=HELD)
    assert "Base: Drawn with space groups 221" in compared.markdown
    assert "Tuned: Drawn" not in compared.markdown


@pytest.mark.parametrize("seeds", [(), (1, 2, 1)])
def test_seeds_that_would_count_samples_twice_are_refused(models, potential, seeds):
    with pytest.raises(InputError, match="seeds"):
        judging.evaluate(models[0], n=4, seeds=seeds)
    assert potential.asked == 0
