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


HULL = "objective.terms.0.settings={hull: gone}"
TABLE = "objective.filters=[{property: price, min: 1, settings: {table: %s}}]"


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


STAGES = "screen.stages=[valid, {type: stable, hull: %s}]"


@pytest.mark.parametrize(
    ("overrides", "check", "said"),
    [
        (["output.directory=file"], "output", "file is a file where a folder is needed"),
        (["output.directory=file/deep"], "output", "file is a file where a folder is needed"),
        (["output={directory: ., cache: folder}"], "cache", "folder is a folder where a file"),
        (["output={directory: ., cache: file}"], "cache", "file can't be read"),
        (["objective.terms.0.property=formation_energy", HULL], "hull gone", "no hull 'gone'"),
        (["objective.filters=[{property: formation_energy, max: 0, settings: {hull: gone}}]"],
         "hull gone", "no hull 'gone'"),
        ([STAGES % "gone"], "hull gone", "no hull 'gone'"),
        ([STAGES % "mp2020", "screen.potential=raw.py"], "screen", "no potential 'raw.py'"),
        (["screen.stages=[valid, {type: novel, reference: file}]"], "screen", "file"),
        ([TABLE % "gone.csv"], "filter price", "gone.csv can't be read as a table of elements; "
         "No such file or directory; Give a CSV file"),
        ([TABLE % "folder"], "filter price", "Is a directory; Give a CSV file"),
        ([TABLE % "binary"], "filter price", "It is not a text file; Give a CSV file"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_problem_of_its_own_check(
    recipe: Path, overrides: list[str], check: str, said: str
) -> None:
    (recipe.parent / "file").write_text("no crystal")
    (recipe.parent / "binary").write_bytes(bytes(range(256)))
    (recipe.parent / "folder").mkdir()
    level, detail = levels(recipe, *overrides)[check]
    assert level is Level.PROBLEM
    assert said in detail and "Errno" not in detail


CLUSTER = "cluster={scheduler: slurm, workers: 4, %s}"
RELAX = "objective.terms.0.settings={relax: %s}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (CLUSTER % "walltime: 1h", "Write hours, minutes and seconds as HH:MM:SS"),
        (CLUSTER % "walltime: 00:01:00", "Give five minutes or more"),
        (CLUSTER % "partition: a b", "Write one word"),
        (CLUSTER % "options: [qos]", "Write an option that begins with a dash"),
        (CLUSTER % "image: x", "Remove cluster.image"),
        (CLUSTER % "min_jobs: 3", "Lower cluster.min_jobs or raise cluster.max_jobs"),
        ("objective.filters=[{property: density}]", "Give min, max or equals"),
        ("objective.filters=[{property: density, min: 3, max: 1}]", "Exchange them, or remove one"),
        ("objective.filters=[{property: density, min: 3, equals: 1}]", "Remove equals, or remove"),
        ("objective.terms.1.shaping={type: linear, low: 3, high: 1}", "Exchange them"),
        ("objective.combine=product", "Use 'linear' or 'sigmoid' there"),
        ("name=a b", "Write letters, digits"),
        ("device=gpu", "Write auto, cpu, mps"),
        ("condition.space_groups=[]", "Give at least one number from 1 to 230"),
        ("condition.space_groups=[231]", "less than or equal to 230"),
        ("budget={batch_size: 4}", "Give budget.steps"),
        ("algorithm.minibatch=64", "Lower algorithm.minibatch"),
        ("screen.stages=[unique]", "Put 'valid' before the others"),
        ("objective.terms.1.settings={timeout: soon}", "Give a finite number or null"),
        ("objective.filters.0={property: price, min: 1, settings: {table: 5}}", "Give text or a"),
        ("objective.terms.0.settings={correct: maybe}", "Give true or false"),
    ],
)
def test_a_mistake_is_told_with_how_to_mend_it(recipe: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        levels(recipe, override)
    assert said in (raised.value.fix or raised.value.why) or said in raised.value.why
    assert "pattern" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("maybe", "Give true, false, or a mapping of settings"),
        ("{fmax: small}", "fmax of a relaxation can't be 'small'; Give a number"),
        ("{timeout: -1}", "timeout can't be -1 s; Give a positive number, or null"),
        ("{volume_range: [4, 1]}", "Give two numbers, the smaller one first"),
    ],
)
def test_settings_of_a_relaxation_are_checked(recipe: Path, given: str, said: str) -> None:
    level, detail = levels(recipe, RELAX % given)["term e_above_hull"]
    assert level is Level.PROBLEM and said in detail


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


def test_two_names_for_one_property_are_found_before_a_run(recipe: Path) -> None:
    second = "objective.filters=[{property: 'half.py:half', name: other, min: 0}]"
    _, _, again = checking.explain_objective(recipe, [second])
    assert "'other' and 'half' are the same property" in again.missing
    assert levels(recipe, second)["term half"][0] is Level.PROBLEM
