"""What can't be drawn is refused before drawing, with the remedy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from nucleate.errors import ConstraintError
from nucleate.policies.condition import Condition, element_mask, smallest_cell
from nucleate.structures.symmetry import tables
from tiny import condition, generator, groups


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"elements": np.zeros(119, dtype=bool)}, "no element"),
        ({"space_groups": np.zeros(231)}, "no space group"),
        ({"space_groups": np.full(231, np.nan)}, "no space group"),
        ({"temperature": 0.0}, "temperature"),
        ({"coordinate_temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_atoms": 0}, "max_atoms"),
        ({"space_groups": groups(1, 230), "max_atoms": 5}, "space group 230"),
    ],
)
def test_what_no_crystal_can_satisfy_is_refused(options, what):
    with pytest.raises(ConstraintError, match=what) as raised:
        Condition(**{"space_groups": groups(1), **options})
    assert raised.value.fix


def test_smallest_cell_is_the_smallest_orbit_of_the_primitive_cell():
    t, smallest = tables(), smallest_cell()
    for group in range(1, 231):
        orbits = [m for m in t.multiplicity[group - 1].tolist() if m]
        assert smallest[group] * t.centring_order[group - 1] == min(orbits)
        condition(group, max_atoms=int(smallest[group]))
        if smallest[group] > 1:
            with pytest.raises(ConstraintError):
                condition(group, max_atoms=int(smallest[group]) - 1)


def test_space_groups_are_drawn_by_weight():
    weights = np.zeros(231)
    weights[[1, 62, 225]] = 1.0, 3.0, 6.0
    drawn = Condition(weights).draw_space_groups(10_000, generator(0))
    assert drawn.equal(Condition(weights).draw_space_groups(10_000, generator(0)))
    count = np.bincount(drawn.numpy(), minlength=231)
    assert count.sum() == count[[1, 62, 225]].sum()
    assert stats.chisquare(count[[1, 62, 225]], [1000, 3000, 6000]).pvalue > 1e-3


def test_survives_json():
    before = condition(
        3,
        225,
        elements=element_mask(["Li", "O"]),
        temperature=0.7,
        coordinate_temperature=0.9,
        top_p=0.8,
        stability=2,
        max_atoms=11,
    )
    after = Condition.from_dict(json.loads(json.dumps(before.to_dict())))
    for name, value in vars(before).items():
        np.testing.assert_array_equal(getattr(after, name), value)


def test_element_lists():
    assert element_mask(["Li", "O"]).nonzero()[0].tolist() == [3, 8]
    denied = element_mask(deny=["O"], exclude=[43, 61])
    assert denied.sum() == 115 and not denied[[0, 8, 43, 61]].any()
    assert element_mask(["Tc"], exclude=[43])[43]  # named is allowed
    with pytest.raises(ConstraintError, match="Xy") as raised:
        element_mask(["Xy"])
    assert raised.value.fix
    with pytest.raises(ConstraintError, match="no element is left"):
        element_mask(["Li"], ["Li"])
