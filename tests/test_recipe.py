"""Recipes: what ships loads, and no misspelt key gets through."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nucleate.config import Settings
from nucleate.errors import InputError, RecipeError
from nucleate.recipe import Recipe, built_in_recipes, load_recipe

RECIPES = built_in_recipes()


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


KEYS = [
    (recipe, path) for recipe, text in RECIPES.items() for path in keys_of(yaml.safe_load(text))
]


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
        data = yaml.safe_load(RECIPES[name])
        where = data
        for part in path[:-1]:
            where = where[part]
        where[wrong] = where.pop(key)
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        assert f"'{'.'.join(map(str, (*path[:-1], wrong)))}'" in caught.value.what
        assert "line" in caught.value.what
        assert str(file) in caught.value.what
        assert f"Did you mean {key!r}" in caught.value.fix


def test_stability_spells_out_every_key_with_its_default_or_choice() -> None:
    def fields(model: type[Settings]) -> set[str]:
        return set(model.model_fields)

    data = yaml.safe_load(RECIPES["stability"])
    assert set(data) == fields(Recipe)
    for section in ("model", "condition", "algorithm", "budget", "evaluation", "output"):
        assert set(data[section]) == fields(Recipe.model_fields[section].annotation), section


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
        ("output.tensorboard=maybe", "auto"),
        ("device=tpu", "device"),
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


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match="'stability'"):
        load_recipe("stabilty")


def test_loading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nucleate.recipe import load_recipe; load_recipe('stability');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pymatgen', 'chgnet')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
