"""Properties by name, and where their potentials are computed."""

from __future__ import annotations

import pytest

from nucleate.errors import RecipeError
from nucleate.execution.local import PooledPotential, fits_workers
from nucleate.objectives.evaluate import make_property

LENNARD_JONES = {
    "name": "ase",
    "calculator": "ase.calculators.lj:LennardJones",
    "correction": "MP2020",
}


def test_a_potential_that_settings_name_is_computed_on_the_pool() -> None:
    pool = object()
    settings = {"potential": LENNARD_JONES}
    pooled = make_property("e_above_hull", settings, resources={"pool": pool, "potential": None})
    assert isinstance(pooled.potential, PooledPotential)
    assert pooled.potential.pool is pool
    assert pooled.key == make_property("e_above_hull", settings).key
    assert settings == {"potential": LENNARD_JONES}


def test_the_shared_potential_is_taken_as_it_is() -> None:
    shared = PooledPotential(LENNARD_JONES, object())
    resources = {"pool": object(), "potential": shared}
    assert make_property("e_above_hull", resources=resources).potential is shared


def test_another_interpreter_has_processes_of_its_own() -> None:
    assert fits_workers("chgnet") and fits_workers(LENNARD_JONES)
    assert not fits_workers({**LENNARD_JONES, "python": "/usr/bin/python3"})
    assert not fits_workers(None)


def test_wrong_settings_are_refused_with_a_pool_too() -> None:
    with pytest.raises(RecipeError, match="hul"):
        make_property(
            "e_above_hull", {"hul": "x", "potential": LENNARD_JONES}, resources={"pool": object()}
        )
