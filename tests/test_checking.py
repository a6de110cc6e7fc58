"""A check finds every problem of a recipe at once, and runs nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from made_up import MadeUpPotential
from nucleate import checking, design
from nucleate.doctor import Level
from nucleate.errors import RecipeError
from nucleate.policies.checkpoint import save_policy
from nucleate.structures.formulas import FormulaIndex
from tiny import tiny_policy

RECIPE = """
name: tried
model: {{checkpoint: {model}}}
condition: {{space_groups: [2, 221], max_atoms: 12, elements: {{allow: [Li, Fe, O]}}}}
algorithm: {{novelty_bonus: 0, minibatch: 8}}
budget: {{batch_size: 8, steps: 2}}
output: {{directory: {runs}}}
objective:
  filters:
    - {{property: density, min: 1}}
  terms:
    - {{property: e_above_hull, shaping: {{type: clip, low: 0, high: 5, direction: minimise}}}}
    - {{property: "half.py:half", shaping: {{type: linear, low: 0, high: 1}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, a tiny model, a function; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    potential = MadeUpPotential()
    potential.pool = None  # functions are called in this process
    monkeypatch.setattr(design, "potential_pool", potential.in_a_pool)
    save_policy(tiny_policy(0), tmp_path / "model")
    FormulaIndex(np.arange(1, 9, dtype=np.uint64), "none").save(
        tmp_path / "model" / design.FORMULAS
    )
    (tmp_path / "half.py").write_text(
        "def half(structures):\n    return [0.5 for s in structures]\n"
    )
    path = tmp_path / "tried.yaml"
    path.write_text(RECIPE.format(model=tmp_path / "model", runs=tmp_path / "runs"))
    return path


def levels(recipe: Path, *overrides: str, trial: bool = False) -> dict[str, tuple[Level, str]]:
    found = checking.check(recipe, overrides, trial=trial)
    return {entry.name: (entry.level, entry.detail) for entry in found}


def test_a_sound_recipe_has_no_problem_and_leaves_nothing_behind(recipe: Path) -> None:
    before = sorted(recipe.parent.rglob("*"))
    found = levels(recipe)
    assert {level for level, _ in found.values()} == {Level.OK}
    assert found["recipe"][1] == "tried; ends after 2 steps"
    assert "2 space groups, 3 elements" in found["condition"][1]
    assert "at least 1 g/cm^3" in found["filter density"][1]
    assert "milliseconds" in found["term e_above_hull"][1]
    assert [p for p in sorted(recipe.parent.rglob("*")) if "__pycache__" not in str(p)] == before


def test_a_dry_run_evaluates_every_property(recipe: Path) -> None:
    found = list(checking.check(recipe, trial=True))
    told = [entry.detail for entry in found if entry.name == "dry run"]
    assert [line.split(":")[0] for line in told] == ["density", "e_above_hull", "half"]
    assert all("a value for 4 of 4 crystals" in line for line in told)
    (recipe.parent / "half.py").write_text("def half(structures):\n    raise OSError('no disk')\n")
    [problem] = [entry for entry in checking.check(recipe, trial=True) if entry.name == "dry run"]
    assert problem.level is Level.PROBLEM
    assert "'half' failed on all 4" in problem.detail and "no disk" in problem.detail


def test_every_problem_is_found_at_once(recipe: Path) -> None:
    (recipe.parent / "runs" / "mine").mkdir(parents=True)
    found = levels(
        recipe,
        "model.checkpoint=gone",
        "device=cuda:64",
        "algorithm.novelty_bonus=0.5",
        "objective.terms.0.settings.hull=mp2021",
        "objective.terms.1.property=density",
        "output.name=mine",
        trial=True,
    )
    problems = {name for name, (level, _) in found.items() if level is Level.PROBLEM}
    assert problems == {"model", "device", "term e_above_hull", "hull mp2021", "output"}
    assert found["dry run"][0] is Level.NOTE
    assert "mine exists already" in found["output"][1]


def test_what_a_hull_lacks_is_noted(recipe: Path) -> None:
    level, detail = levels(recipe, "condition.elements.allow=[Li,O,Og]")["hull mp2020"]
    assert level is Level.NOTE and "lacks Og" in detail


def test_an_unknown_key_is_an_error(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="objctive"):
        levels(recipe, "objctive.combine=mean")


def test_an_objective_is_explained(recipe: Path) -> None:
    parts = checking.explain_objective(recipe, ["objective.terms.0.settings.hull=mp2021"])
    assert [(p.kind, p.name, p.unit, p.range) for p in parts] == [
        ("filter", "density", "g/cm^3", None),
        ("term", "e_above_hull", "eV/atom", (-5.0, 0.0)),
        ("term", "half", "", (0.0, 1.0)),
    ]
    assert parts[1].wanted == "clip: low 0, high 5, minimise"
    assert ["mp2021" in part.missing for part in parts] == [False, True, False]


def test_an_entry_is_shown_by_its_name_and_its_property(recipe: Path) -> None:
    parts = checking.explain_objective(recipe, ["objective.terms.0.name=stability"])
    assert [(p.name, p.property) for p in parts][1:] == [
        ("stability", "e_above_hull"),
        ("half", "half.py:half"),
    ]
