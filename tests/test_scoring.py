"""Which potentials scoring puts into worker processes of its own."""

from __future__ import annotations

from typing import Any

import pytest

from nucleate import scoring

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
    assert scoring._pooled_potential(prop, settings) == (potential, pooled)
