"""What can't work in a recipe is refused before a run has a folder."""

from __future__ import annotations

from typing import Any

import pytest

from nucleate.errors import RecipeError
from nucleate.readiness import check_bonus, check_limits
from nucleate.recipe import Recipe, load_recipe


@pytest.mark.parametrize(
    ("term", "settings", "bonus", "earned"),
    [
        ("e_above_hull", {}, 0.8, True),
        ("mine.py:energy", {"name": "e_above_hull"}, 0.8, True),
        ("density", {}, 0.8, False),
        ("density", {}, 0.0, True),
    ],
)
def test_a_bonus_that_nothing_can_earn_is_refused(
    term: str, settings: dict[str, Any], bonus: float, earned: bool
) -> None:
    shaping = {"type": "linear", "low": 0, "high": 20}
    terms = [{"property": term, "settings": settings, "shaping": shaping}]
    recipe = Recipe.model_validate(
        {
            "objective": {"terms": terms},
            "algorithm": {"novelty_bonus": bonus},
            "budget": {"steps": 1},
        }
    )
    if earned:
        check_bonus(recipe)
    else:
        with pytest.raises(RecipeError, match=r"novelty_bonus.*\n.*e_above_hull.*\n.*to 0"):
            check_bonus(recipe)


def test_a_limit_is_on_a_cost_class_or_a_property_of_the_objective() -> None:
    check_limits(load_recipe("stability", ["budget.limits={dft: 5, e_above_hull: 9}"]))
    with pytest.raises(RecipeError, match=r"'e_above_hul'.*\n.*'e_above_hull'"):
        check_limits(load_recipe("stability", ["budget.limits.e_above_hul=9"]))
    assert load_recipe("stability", ["budget={limits: {dft: 5}}"]).budget.limits == {"dft": 5}
