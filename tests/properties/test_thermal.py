"""Heat capacity and phonon stability as properties."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from nucleate import plugins
from nucleate.errors import MissingDependencyError, RecipeError
from nucleate.physics.potentials import AsePotential
from nucleate.properties.shared import Shared
from nucleate.properties.thermal import HeatCapacity, PhononStability
from nucleate.protocols import CostClass, Property, Status

needs_phonopy = pytest.mark.skipif(
    importlib.util.find_spec("phonopy") is None, reason="phonopy is not installed"
)


class Counting(AsePotential):
    """Effective medium theory that counts the cells it is asked for."""

    def __init__(self, tag: str = "") -> None:
        super().__init__(EMT(), name=f"emt{tag}")
        self.asked = 0

    def evaluate(self, structures, **wanted):
        self.asked += len(structures)
        return super().evaluate(structures, **wanted)


def copper() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])


def test_properties_are_found_by_their_names() -> None:
    for made in (HeatCapacity, PhononStability):
        assert plugins.load(plugins.PROPERTIES, made.name) is made


def test_without_phonopy_nothing_starts(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make in (HeatCapacity, PhononStability):
        with pytest.raises(MissingDependencyError, match="phonopy"):
            make(potential=Counting())


@needs_phonopy
def test_heat_capacity_per_mass_whatever_the_cell() -> None:
    prop = HeatCapacity(potential=Counting())
    assert isinstance(prop, Property) and prop.cost is CostClass.RELAXATION
    cells = [copper(), copper().get_primitive_structure(), copper() * [1, 1, 2]]
    scores = prop.evaluate(cells)
    np.testing.assert_allclose(scores.value, scores.value[0], rtol=1e-6)
    assert scores.value[0] == pytest.approx(0.37, abs=0.01)
    np.testing.assert_allclose(
        scores.extra["heat_capacity_molar"], scores.value * 63.546, rtol=1e-3
    )
    hot = HeatCapacity(1e5, potential=Counting()).evaluate([copper()])
    assert hot.extra["heat_capacity_molar"][0] == pytest.approx(3 * 8.314463, rel=1e-3)


@needs_phonopy
def test_phonons_are_computed_once() -> None:
    potential = Counting("-phonons-once")
    shared = Shared()
    stability = PhononStability(potential=potential).evaluate([copper()], shared)
    asked = potential.asked
    assert stability.value[0] == pytest.approx(0.0, abs=0.01), "acoustic, at zero wave vector"
    assert stability.extra["imaginary"][0] == 0.0
    for temperature in (100.0, 300.0):
        capacity = HeatCapacity(temperature, potential=potential).evaluate([copper()], shared)
        assert capacity.extra["lowest_frequency"][0] == stability.value[0]
    assert potential.asked == asked > 0


@needs_phonopy
def test_imaginary_modes_are_reported() -> None:
    argon = AsePotential(LennardJones(sigma=3.4, epsilon=0.0104, rc=9.0, smooth=True))
    simple = Structure(Lattice.cubic(3.7), ["Ar"], [[0] * 3])
    half = Structure(Lattice.cubic(4.0), [{"Ar": 0.5}], [[0] * 3])
    stability = PhononStability(potential=argon).evaluate([simple, half])
    assert stability.value[0] < -0.1
    assert stability.status == [Status.OK, Status.INVALID]
    capacity = HeatCapacity(potential=argon).evaluate([simple])
    assert capacity.status == [Status.UNSUPPORTED]
    assert capacity.reason[0].startswith("imaginary modes: ")
    tolerant = HeatCapacity(max_imaginary=1.0, potential=argon).evaluate([simple])
    lost = 1 - tolerant.extra["heat_capacity_molar"][0] / (3 * 8.314463)
    assert lost == pytest.approx(stability.extra["imaginary"][0], abs=0.02)


@needs_phonopy
def test_key_follows_everything_that_the_value_depends_on() -> None:
    potential = Counting()
    variants = [
        PhononStability(potential),
        HeatCapacity(potential=potential),
        HeatCapacity(200.0, potential=potential),
        HeatCapacity(max_imaginary=0.0, potential=potential),
        HeatCapacity(potential=potential, min_length=8.0),
        HeatCapacity(potential=potential, displacement=0.01),
        HeatCapacity(potential=potential, mesh=20.0),
        HeatCapacity(potential=potential, relax=False),
        HeatCapacity(potential=Counting("-other")),
    ]
    assert len({prop.key for prop in variants}) == len(variants)


@needs_phonopy
def test_wrong_settings_are_refused_before_any_work() -> None:
    for wrong in (
        {"temperature": 0.0},
        {"max_imaginary": 1.5},
        {"min_length": 0},
        {"relax": {"f": 1}},
    ):
        with pytest.raises(RecipeError):
            HeatCapacity(potential=Counting(), **wrong)
