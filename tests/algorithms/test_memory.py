"""The bonus runs out, and the guard sees a collapse and names it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.algorithms.memory import Guard, NoveltyBonus, diversity
from nucleate.recipe import GuardSettings
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.symmetry import tables
from tiny import condition, generator, tiny_policy

KNOWN = FormulaIndex(np.array([1, 2, 2**63 + 5], dtype=np.uint64))


def keys(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def test_bonus_of_a_formula_falls_to_nothing():
    bonus = NoveltyBonus(KNOWN, 0.6, 3)
    value, new = bonus(keys(7, 7, 8, 7, 7, 1), np.array([1, 1, 1, 1, 1, 1], dtype=bool))
    np.testing.assert_allclose(value, [0.6, 0.4, 0.6, 0.2, 0.0, 0.0])
    assert new.tolist() == [True, False, True, False, False, False]
    value, new = bonus(keys(7, 8, 9), np.array([True, True, False]))
    np.testing.assert_allclose(value, [0.0, 0.4, 0.0])
    assert not new.any()
    assert bonus(keys(9), np.array([True]))[1].all()  # it was not stable before


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 59))
def test_bonus_survives_a_checkpoint_and_is_bounded(values, uses, cut):
    def run(stop: int) -> list[float]:
        bonus, earned = NoveltyBonus(KNOWN, 1.0, uses), []
        for start in range(0, len(values), 7):
            if start // 7 == stop:
                restored = NoveltyBonus(KNOWN, 1.0, uses)
                restored.load_state_dict(bonus.state_dict())
                bonus = restored
            part = keys(*values[start : start + 7]) + np.uint64(2**63)
            earned += bonus(part, np.ones(len(part), dtype=bool))[0].tolist()
        return earned

    assert run(cut // 7) == run(-1)
    earned = np.array(run(-1))
    assert ((earned >= 0) & (earned <= 1)).all()
    for value in set(values):
        mine = earned[np.array(values) == value]
        assert (mine == 0).all() if value == 5 else (np.diff(mine) <= 0).all()
        assert mine.sum() <= (uses + 1) / 2 + 1e-9 and (mine[uses:] == 0).all()


def test_diversity_counts():
    batch = tiny_policy().sample(100, condition(max_atoms=30), generator(0)).batch
    measured = diversity(batch)
    systems = {frozenset(row[row > 0].tolist()) for row in batch.species}
    assert measured["n_systems"] == len(systems)
    assert measured["n_space_groups"] == len(set(batch.space_group.tolist()))
    assert measured["mean_sites"] == pytest.approx(batch.n_sites.mean())
    order = tables().centring_order[batch.space_group.astype(int) - 1]
    assert measured["mean_atoms"] == pytest.approx((batch.n_atoms / order).mean())
    same = diversity(batch[np.zeros(100, dtype=int)])
    n = len(set(batch.species[0][batch.species[0] > 0].tolist()))
    assert same["n_systems"] == 1 and same["element_entropy"] == pytest.approx(np.log(n))


HEALTHY = {
    "n_systems": 100.0,
    "n_space_groups": 50.0,
    "mean_sites": 4.0,
    "mean_atoms": 10.0,
    "element_entropy": 4.0,
}


@pytest.mark.parametrize(
    ("name", "words", "limit"),
    [
        ("n_systems", "systems", "min_systems"),
        ("n_space_groups", "space groups", "min_space_groups"),
        ("mean_sites", "sites", "min_sites"),
        ("mean_atoms", "atoms", "min_atoms"),
        ("element_entropy", "entropy", "min_entropy"),
    ],
)
def test_guard_names_what_collapsed_at_its_own_limit(name, words, limit):
    settings = GuardSettings.model_validate({limit: 0.6, "window": 3})
    guard = Guard(settings)
    for _ in range(6):
        assert guard(HEALTHY) == ""
    nearly = HEALTHY | {name: 0.7 * HEALTHY[name]}
    for _ in range(6):
        assert guard(nearly) == ""
    fallen = HEALTHY | {name: 0.5 * HEALTHY[name]}
    seen = [guard(fallen) for _ in range(3)]
    assert words in seen[-1] and "50%" in seen[-1] and "60%" in seen[-1]
    # one bad batch in a window is no collapse
    assert seen[0] == ""


def test_guard_can_be_turned_off_and_survives_a_checkpoint():
    off = Guard(GuardSettings.model_validate({"action": "off", "window": 1}))
    assert all(off(HEALTHY | {"mean_sites": v}) == "" for v in (4.0, 0.1))
    settings = GuardSettings.model_validate({"window": 2})
    rows = [HEALTHY | {"mean_sites": v} for v in (4.0, 4.2, 4.0, 3.3, 2.9, 2.8, 2.7)]
    whole = Guard(settings)
    expected = [whole(row) for row in rows]
    assert expected[-1] and not expected[2]
    for cut in range(len(rows)):
        one, two = Guard(settings), Guard(settings)
        said = [one(row) for row in rows[:cut]]
        two.load_state_dict(one.state_dict())
        assert said + [two(row) for row in rows[cut:]] == expected
