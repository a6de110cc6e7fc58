"""Crystals drawn from a policy: order, seeds, what a recipe fixes."""

from __future__ import annotations

import numpy as np
import pytest

from nucleate.errors import ConstraintError
from nucleate.recipe import Recipe
from nucleate.samples import SAMPLE_CHUNK, condition_from_recipe, default_condition, sample
from tiny import condition, tiny_policy


def test_samples_keep_their_order_and_their_seed():
    policy = tiny_policy()
    held = condition(2, 62, 221, max_atoms=16)
    one, two = (sample(policy, 30, held, seed=4) for _ in range(2))
    assert len(one.structures) == len(one.reasons) == len(one.log_prob) == len(one.batch) == 30
    assert [one.batch.digest(i) for i in range(30)] == [two.batch.digest(i) for i in range(30)]
    for i, structure in enumerate(one.structures):
        assert structure is not None
        assert structure.composition.reduced_formula == one.batch.formula(i)
    other = sample(policy, 30, held, seed=5)
    assert other.batch.digest(0) != one.batch.digest(0)
    chunked = sample(policy, SAMPLE_CHUNK + 7, held, seed=4)
    assert len(chunked.structures) == SAMPLE_CHUNK + 7


def test_the_default_condition_has_the_groups_of_the_data_and_nothing_radioactive():
    held = default_condition(tiny_policy())
    np.testing.assert_array_equal(np.flatnonzero(held.space_groups), [2, 62, 225])
    assert not held.elements[[43, 61, 84, 92, 94]].any() and held.elements[[1, 26, 83]].all()


def test_cells_are_no_larger_than_the_recipe_says():
    policy = tiny_policy()
    asked = Recipe.model_validate({"budget": {"steps": 1}, "condition": {"max_atoms": 6}})
    held = condition_from_recipe(asked, policy)
    assert held.max_atoms == 6
    assert held.space_groups[2] > 0 and held.space_groups[225] > 0
    sizes = [len(s) for s in sample(policy, 40, held, seed=1).structures if s]
    assert len(sizes) == 40 and max(sizes) <= 6
    # no crystal of group 62 has fewer than four atoms
    tighter = asked.condition.model_copy(update={"max_atoms": 3})
    held = condition_from_recipe(asked.model_copy(update={"condition": tighter}), policy)
    np.testing.assert_array_equal(np.flatnonzero(held.space_groups), [2, 225])
    with pytest.raises(ConstraintError, match="62 has no crystal with 1 atom\n"):
        condition(62, max_atoms=1)
