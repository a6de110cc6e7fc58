"""What scoring puts into worker processes of its own, and what it shares with runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pymatgen.core import Lattice, Structure

from nucleate import scoring
from nucleate.objectives.evaluate import make_property, potential_of_workers
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Linear
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.store.cache import EvaluationCache
from nucleate.structures.writing import write_extxyz

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


def test_runs_and_scored_files_share_what_they_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crystals = [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
        for a in (5.691234567, 5.8)
    ]
    write_extxyz(crystals, tmp_path / "crystals.extxyz")
    cache = tmp_path / "evaluations.sqlite"
    shaping = Linear(type="linear", low=0, high=1)
    with EvaluationCache(cache, "a run") as known:
        objective = Objective([Term(make_property("e_above_hull"), shaping)], cache=known)
        expected = objective.score(crystals, ["a", "b"]).scores["e_above_hull"].value
        objective.close()
    asked: list[int] = []

    def count(self: ChgnetPotential, structures: Any, **wanted: Any) -> list[Any]:
        asked.append(len(structures))
        return [RuntimeError("asked")] * len(structures)

    monkeypatch.setattr(ChgnetPotential, "evaluate", count)
    files = [tmp_path / "crystals.extxyz"]
    rows = scoring.score(files, "e_above_hull", workers=1, cache=cache)
    assert [row["e_above_hull"] for row in rows] == expected.tolist() and not asked
    others = scoring.score(files, "e_above_hull", {"hull": "chgnet"}, workers=1, cache=cache)
    assert asked == [2] and {row["status"] for row in others} == {"failed"}
