"""Properties by name, and where their potentials are computed."""

from __future__ import annotations

import pytest

from nucleate.errors import RecipeError
from nucleate.execution.local import PooledPotential
from nucleate.objectives.evaluate import make_property, potential_of_workers

LENNARD_JONES = {
    "name": "ase",
    "calculator": "ase.calculators.lj:LennardJones",
    "correction": "MP2020",
}


class Pool:
    """Workers that are never asked."""

    workers_here = 2


def test_a_potential_that_settings_name_is_computed_on_the_pool() -> None:
    pool = Pool()
    settings = {"potential": LENNARD_JONES}
    pooled = make_property("e_above_hull", settings, resources={"pool": pool, "potential": None})
    assert isinstance(pooled.potential, PooledPotential)
    assert pooled.potential.pool is pool
    assert pooled.key == make_property("e_above_hull", settings).key
    assert settings == {"potential": LENNARD_JONES}


def test_the_shared_potential_is_taken_as_it_is() -> None:
    shared = PooledPotential(LENNARD_JONES, Pool())
    resources = {"pool": Pool(), "potential": shared}
    assert make_property("e_above_hull", resources=resources).potential is shared


def test_another_interpreter_has_processes_of_its_own() -> None:
    def of_workers(potential):
        return potential_of_workers("e_above_hull", {"potential": potential})

    assert of_workers("chgnet") == "chgnet" and of_workers(LENNARD_JONES) == LENNARD_JONES
    assert of_workers({**LENNARD_JONES, "python": "/usr/bin/python3"}) is None
    assert of_workers(None) is None


def test_wrong_settings_are_refused_with_a_pool_too() -> None:
    with pytest.raises(RecipeError, match="hul"):
        make_property(
            "e_above_hull", {"hul": "x", "potential": LENNARD_JONES}, resources={"pool": Pool()}
        )
