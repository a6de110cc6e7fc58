"""Recipes: what ships loads, and no misspelt key gets through."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nucleate.config import Settings, dotted
from nucleate.errors import InputError, RecipeError
from nucleate.policies.condition import Condition
from nucleate.readiness import check_bonus, check_limits
from nucleate.recipe import (
    PPOSettings,
    Recipe,
    built_in_recipes,
    describe,
    load_recipe,
    with_absolute_paths,
)

RECIPES = built_in_recipes()
EVERY_KEY = yaml.safe_dump(load_recipe("stability").model_dump(mode="json"), sort_keys=False)
TEXTS = RECIPES | {"every key": EVERY_KEY}


def keys_of(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from keys_of(value, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from keys_of(value, (*path, i))


def misspelt(name: str) -> list[str]:
    middle = len(name) // 2
    return [name[:middle] + name[middle + 1 :], name[:middle] + "x" + name[middle:]]


KEYS = [(recipe, path) for recipe, text in TEXTS.items() for path in keys_of(yaml.safe_load(text))]


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 43 not in recipe.condition.elements.numbers()


@pytest.mark.parametrize(
    ("name", "path"), KEYS, ids=[f"{n}:{'.'.join(map(str, p))}" for n, p in KEYS]
)
def test_one_wrong_letter_is_rejected_with_a_suggestion(
    name: str, path: tuple[str | int, ...], tmp_path: Path
) -> None:
    key = str(path[-1])
    for wrong in misspelt(key):
        data = yaml.safe_load(TEXTS[name])
        where = data
        for part in path[:-1]:
            where = where[part]
        where[wrong] = where.pop(key)
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        if "settings" in path[:-1]:  # the property's own
            assert dotted(path[:3]) in caught.value.what and repr(wrong) in caught.value.what
        else:
            assert f"'{dotted((*path[:-1], wrong))}'" in caught.value.what
            assert "line" in caught.value.what
        assert str(file) in caught.value.what
        assert f"Did you mean {key!r}" in caught.value.fix


def test_a_recipe_that_says_nothing_is_the_tested_one() -> None:
    tested = load_recipe("stability")
    bare = Recipe(name=tested.name, description=tested.description)
    for section in Recipe.model_fields:
        assert getattr(bare, section) == getattr(tested, section), section
    said = {key.key: key.default for key in describe(Recipe)}
    assert said["budget.evaluations"] == "30000" and said["budget.steps"] == "null"
    assert said["algorithm.continuous_weight"] == "0.0"
    # who says when to stop means that and no other limit
    asked = Recipe.model_validate({"budget": {"steps": 20}}).budget
    assert (asked.steps, asked.evaluations, asked.minutes) == (20, None, None)


def test_the_full_recipe_is_the_tested_one_for_longer() -> None:
    tested, full = load_recipe("stability"), load_recipe("stability-full")
    for section in ("model", "condition", "objective", "algorithm", "seed", "device"):
        assert getattr(full, section) == getattr(tested, section), section
    assert full.evaluation.model_copy(update={"seeds": (1,)}) == tested.evaluation


def test_the_published_recipe_leaves_nothing_of_the_algorithm_to_a_default() -> None:
    data = yaml.safe_load(RECIPES["stability-published"])
    assert set(data["algorithm"]) == set(PPOSettings.model_fields)
    whole = {"temperature": 1.0, "coordinate_temperature": 1.0, "top_p": 1.0}
    assert data["condition"] == whole
    papers = {
        "form": "published",
        "learning_rate": 1e-4,
        "kl_weight": 0.1,
        "kl_target": None,
        "clip_epsilon": 0.2,
        "inner_steps": 3,
        "minibatch": None,
        "ratio": "sequence",
        "continuous_weight": 1.0,
        "whiten": False,
        "baseline": "batch_ema",
        "baseline_decay": 0.95,
        "size_neutrality": 0.0,
        "entropy_weight": 0.0,
        "novelty_bonus": 0.0,
    }
    assert {key: data["algorithm"][key] for key in papers} == papers


def test_cells_are_as_large_as_the_condition_allows_by_default() -> None:
    defaults = {field.name: field.default for field in fields(Condition)}
    assert load_recipe("stability").condition.max_atoms == defaults["max_atoms"]


def test_paths_in_settings_are_those_of_the_working_directory_or_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, files in ((beside, ("film.cif", "both", "my.hull")), (here, ("both", "mp2020"))):
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    shaping = {"type": "linear", "low": 0, "high": 1}
    potential = {"name": "mace", "weights": "both", "python": "python3"}
    settings = [
        (
            "coincident_area",
            {"substrate": "film.cif(1-10)"},
            {"substrate": "{beside}/film.cif(1-10)"},
        ),
        ("coincident_area", {"substrate": "Si(100)"}, {"substrate": "Si(100)"}),
        ("predicted", {"predictor": "both"}, {"predictor": "{here}/both"}),
        ("figure_of_merit", {"band_gap": "band_gap"}, {"band_gap": "band_gap"}),
        ("e_above_hull", {"hull": "my.hull"}, {"hull": "{beside}/my.hull"}),
        ("formation_energy", {"hull": "mp2020"}, {"hull": "mp2020"}),  # a name that ships
        ("price", {"table": "nowhere.csv"}, {"table": "nowhere.csv"}),  # for the property to say
        (
            "bulk_modulus",
            {"potential": potential},
            {"potential": potential | {"weights": "{here}/both"}},
        ),
    ]
    terms = [
        {"property": prop, "name": f"term_{i}", "settings": given, "shaping": shaping}
        for i, (prop, given, _) in enumerate(settings)
    ]
    (beside / "mine.yaml").write_text(
        yaml.safe_dump({"objective": {"terms": terms}, "algorithm": {"novelty_bonus": 0}})
    )
    monkeypatch.chdir(here)
    recipe = load_recipe("../beside/mine.yaml")
    found = [entry.settings for entry in recipe.objective.terms]
    wanted = json.dumps([entry[2] for entry in settings])
    for name, folder in (("{here}", here), ("{beside}", beside)):
        wanted = wanted.replace(name, str(folder))
    assert found == json.loads(wanted)
    monkeypatch.chdir("/")
    assert with_absolute_paths(recipe, "mine.yaml") == recipe


def two_hulls(*names: str | None) -> dict[str, Any]:
    shaping = {"type": "linear", "low": 0, "high": 1}
    settings = [{"hull": "mp2020"}, {"hull": "chgnet"}]
    entries = [
        {"property": "e_above_hull", "name": name, "settings": s, "shaping": shaping}
        for name, s in zip(names, settings, strict=True)
    ]
    limits = {entry["name"]: 5 for entry in entries if entry["name"]}
    return {"objective": {"terms": entries}, "budget": {"steps": 1, "limits": limits}}


def test_two_settings_of_one_property_need_two_names() -> None:
    recipe = Recipe.model_validate(two_hulls(None, "by_chgnet"))
    assert [entry.label for entry in recipe.objective.properties] == ["e_above_hull", "by_chgnet"]
    check_limits(recipe)
    check_bonus(recipe)  # what is called e_above_hull says which crystals are stable
    with pytest.raises(RecipeError, match="called e_above_hull"):
        check_bonus(Recipe.model_validate(two_hulls("by_mp2020", "by_chgnet")))
    for names, said in (
        ((None, None), "e_above_hull stands here twice with different settings"),
        (("a", "a"), "twice with different settings"),
        ((None, "step"), "'step' is a column of every table"),
        ((None, "valid"), "'valid' in the objective is that of a stage"),
        ((None, "a b"), "pattern"),
    ):
        with pytest.raises(ValidationError, match=said):
            Recipe.model_validate(two_hulls(*names))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"property": "mine.py:reward"}, "'reward' is a column of every table"),
        ({"property": "mine.py:f", "settings": {"name": "status"}}, "'status' is a column"),
        ({"property": "mine.py:valid"}, "'valid' in the objective is that of a stage"),
    ],
)
def test_a_function_is_called_like_nothing_else_either(entry: dict, said: str) -> None:
    terms = [{**entry, "shaping": {"type": "clip", "low": 0.0, "high": 1.0}}]
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"objective": {"terms": terms}})


def test_every_field_has_a_description() -> None:
    def check(model: type[Settings]) -> None:
        for name, field in model.model_fields.items():
            if name != "type" or not field.is_required():
                assert field.description, f"{model.__name__}.{name}"
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Settings):
                check(kind)

    check(Recipe)


def test_recipe_survives_a_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe("stability", ["condition.space_groups=[225, 221]", "seed=7"])
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(file) == recipe


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("condition.space_groups=[1, 231]", "condition.space_groups.1"),
        ("condition.space_groups=[]", "condition.space_groups"),
        ("condition.space_groups=[5, 5]", "twice"),
        ("condition.elements.allow=[Fe, Xx]", "Xx"),
        ("condition.elements.deny=[fe]", "'Fe'"),
        ("objective.terms=[]", "objective.terms"),
        ("objective.terms.0.shaping.low=1", "below high"),
        ("objective.terms.0.shaping.type=clp", "'clip'"),
        ("objective.terms.0.weight=2", "no weights"),
        ("objective.combine=product", "needs scores"),
        ("objective.terms.0.property=densty", "'density'"),
        ("objective.terms.0.property=gone.py:f", "gone.py"),
        ("algorithm.minibatch=1000", "batch_size"),
        ("budget={batch_size: 8}", "needs an end"),
        ("budget.evaluations=255", "no room for one batch"),
        ("budget.limits.dft=0", "budget.limits.dft"),
        ("budget.core_hours=0", "budget.core_hours"),
        ("evaluation.seeds=[1, 2, 1]", "twice"),
        ("condition.max_atoms=0", "max_atoms"),
        ("output.tensorboard=maybe", "auto"),
        ("device=tpu", "device"),
        ("device=cuda0", "cuda:1"),
    ],
)
def test_bad_values_are_explained(override: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("stability", [override])
    assert part in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_elements_denied_down_to_none() -> None:
    with pytest.raises(RecipeError, match="No element is left"):
        load_recipe("stability", ["condition.elements.allow=[Fe]", "condition.elements.deny=[Fe]"])


def test_an_empty_file_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml is empty"):
        load_recipe(tmp_path / "mine.yaml")


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match="'stability'"):
        load_recipe("stabilty")


def test_loading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nucleate.recipe import load_recipe; load_recipe('stability');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pymatgen', 'chgnet')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "override",
    ["budget={batch_size: 8, steps: 1}", "budget={core_hours: 1}", "algorithm.kl_target=2"],
)
def test_what_a_run_writes_down_is_a_recipe_again(override: str) -> None:
    recipe = load_recipe("stability", [override])
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again.model_dump() == recipe.model_dump()
