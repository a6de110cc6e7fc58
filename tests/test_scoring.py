"""Which potentials scoring puts into worker processes of its own."""

from __future__ import annotations

from typing import Any

import pytest

from nucleate import scoring
from nucleate.objectives.evaluate import potential_of_workers

MACE = {"name": "mace", "model": "small"}


@pytest.mark.parametrize(
    ("prop", "settings", "potential", "pooled"),
    [
        ("density", {}, None, False),
        ("predicted", {"predictor": "mine"}, None, True),
        ("mine.py:f", {"python": "python3"}, None, True),
        ("e_above_hull", {}, "chgnet", True),
        ("e_above_hull", {"potential": "mace"}, "mace", True),
        ("bulk_modulus", {"potential": MACE}, MACE, True),
        ("e_above_hull", {"potential": MACE | {"python": "/mace/bin/python"}}, None, False),
        ("e_above_hull", {"potential": 5}, None, False),
    ],
)
def test_what_is_pooled(prop: str, settings: dict[str, Any], potential: Any, pooled: bool) -> None:
    assert potential_of_workers(prop, settings) == potential
    assert (potential is not None or scoring._takes_pool(prop)) == pooled


def test_a_gpu_of_this_machine_needs_no_second_copy() -> None:
    settings = {"potential": MACE | {"device": "cuda"}}
    assert potential_of_workers("bulk_modulus", settings) is None
    assert potential_of_workers("bulk_modulus", settings, here=False) == settings["potential"]
