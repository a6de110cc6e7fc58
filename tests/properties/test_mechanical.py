"""Moduli and hardness as properties: one tensor for all, failures with reasons."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from nucleate import plugins
from nucleate.errors import RecipeError
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.physics.potentials import AsePotential
from nucleate.properties.mechanical import (
    BulkModulus,
    BulkModulusOfState,
    PughRatio,
    ShearModulus,
    VickersHardness,
    YoungModulus,
)
from nucleate.properties.shared import Shared
from nucleate.protocols import CostClass, Property, Status

ELASTIC = (BulkModulus, ShearModulus, YoungModulus, PughRatio, VickersHardness)


class Counting(AsePotential):
    """Effective medium theory that counts the cells it is asked for."""

    def __init__(self, tag: str = "") -> None:
        super().__init__(EMT(), name=f"emt{tag}")
        self.asked = 0

    def evaluate(self, structures, **wanted):
        self.asked += len(structures)
        return super().evaluate(structures, **wanted)


def copper(a: float = 3.6) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Cu"], [[0, 0, 0]])


def test_properties_are_found_by_their_names() -> None:
    for made in (*ELASTIC, BulkModulusOfState):
        assert plugins.load(plugins.PROPERTIES, made.name) is made


def test_one_tensor_serves_all() -> None:
    potential = Counting("-one-tensor")
    counts, shared = [], Shared()
    for make in ELASTIC:
        prop = make(potential=potential)
        assert isinstance(prop, Property) and prop.cost is CostClass.RELAXATION
        scores = prop.evaluate([copper()], shared)
        assert scores.ok.all(), scores.reason
        counts.append(potential.asked)
    assert counts[0] > 7 and set(counts) == {counts[0]}


def test_values_and_columns_are_those_of_the_tensor() -> None:
    potential = Counting()
    crystals = [copper(3.59), copper(3.62)]
    scores = {make.name: make(potential=potential).evaluate(crystals) for make in ELASTIC}
    extra = scores["bulk_modulus"].extra
    bulk, shear = scores["bulk_modulus"].value, scores["shear_modulus"].value
    np.testing.assert_allclose(bulk, (extra["c11"] + 2 * extra["c12"]) / 3, rtol=1e-9)
    np.testing.assert_allclose(bulk, 134, rtol=0.01)
    np.testing.assert_array_equal(bulk, extra["bulk_hill"])
    np.testing.assert_array_equal(shear, extra["shear_hill"])
    np.testing.assert_allclose(shear, (extra["shear_voigt"] + extra["shear_reuss"]) / 2)
    np.testing.assert_allclose(scores["young_modulus"].value, 9 * bulk * shear / (3 * bulk + shear))
    np.testing.assert_allclose(scores["pugh_ratio"].value, bulk / shear)
    hardness = 0.92 * (shear / bulk) ** 1.137 * shear**0.708
    np.testing.assert_allclose(scores["vickers_hardness"].value, hardness)
    assert {f"c{i}{j}" for i in range(1, 7) for j in range(i, 7)} <= set(extra)
    np.testing.assert_allclose(extra["softest_strain"], extra["c11"] - extra["c12"], rtol=1e-6)


def test_averages() -> None:
    potential = Counting()
    shear = {
        average: ShearModulus(potential, average=average).evaluate([copper()]).value[0]
        for average in ("reuss", "hill", "voigt")
    }
    assert shear["reuss"] < shear["hill"] < shear["voigt"]


@pytest.mark.parametrize(
    ("formula", "bulk", "expected"),
    [
        ("tian", 20.0, 0.92 * 0.5**1.137 * 10**0.708),
        ("teter", 20.0, 1.51),
        ("tian-teter", 20.0, 1.51),
        ("tian-teter", 30.0, 0.92 * (1 / 3) ** 1.137 * 10**0.708),
    ],
)
def test_hardness_formulas(formula, bulk, expected) -> None:
    hardness = VickersHardness(formula, potential=Counting())
    assert hardness.value(bulk, 10.0) == pytest.approx(expected)


def test_golden_numbers() -> None:
    potential = Counting()
    assert YoungModulus(potential).value(100, 50) == pytest.approx(128.57, abs=0.005)
    assert PughRatio(potential).value(100, 50) == 2.0
    assert VickersHardness(potential=potential).value(100, 50) == pytest.approx(6.67, abs=0.005)


def test_failures_have_reasons() -> None:
    argon = AsePotential(LennardJones(sigma=3.4, epsilon=0.0104, rc=9.0, smooth=True))
    simple = Structure(Lattice.cubic(3.7), ["Ar"], [[0] * 3])
    squeezed = Structure(Lattice.cubic(2.0), ["Ar"], [[0] * 3])
    half = Structure(Lattice.cubic(4.0), [{"Ar": 0.5}], [[0] * 3])
    solid = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.2), ["Ar"], [[0] * 3])
    scores = ShearModulus(argon).evaluate([simple, squeezed, half, solid])
    assert scores.status == [
        Status.UNSUPPORTED,
        Status.UNSUPPORTED,
        Status.INVALID,
        Status.OK,
    ]
    assert scores.reason[0].startswith("not mechanically stable: ")
    assert scores.reason[1].startswith("relaxation exploded: ")
    assert scores.reason[2] and not scores.reason[3]
    assert scores.extra["softest_strain"][0] < 0, "the tensor of an unstable crystal is kept"
    assert np.isnan(scores.extra["bulk_hill"][0])
    slow = BulkModulus(argon, relax={"max_steps": 0, "fmax": 1e-6}).evaluate([solid])
    assert slow.reason[0].startswith("relaxation not converged: ")


def test_equation_of_state_as_a_property() -> None:
    potential = Counting()
    [bulk] = BulkModulus(potential).evaluate([copper()]).value
    for form in ("birch-murnaghan", "murnaghan"):
        scores = BulkModulusOfState(form, potential).evaluate([copper()])
        assert scores.value[0] == pytest.approx(bulk, rel=0.01)
        assert scores.extra["volume"][0] == pytest.approx(11.57, rel=5e-3)
    assert len(BulkModulusOfState(potential=potential).evaluate([])) == 0


def test_key_follows_everything_that_the_value_depends_on() -> None:
    potential = Counting()
    variants = [
        BulkModulus(potential),
        ShearModulus(potential),
        BulkModulus(Counting("-other")),
        BulkModulus(potential, relax=False),
        BulkModulus(potential, relax={"fmax": 0.05}),
        BulkModulus(potential, ions="clamped"),
        BulkModulus(potential, strains=[0.01]),
        BulkModulus(potential, average="voigt"),
        VickersHardness("tian", potential),
        VickersHardness("teter", potential),
        BulkModulusOfState(potential=potential),
        BulkModulusOfState("murnaghan", potential),
        BulkModulusOfState(potential=potential, points=9),
    ]
    assert len({prop.key for prop in variants}) == len(variants)
    assert BulkModulus(potential, strains=[0.01, 0.02]).key == BulkModulus(potential).key


def test_wrong_settings_are_refused_before_any_work() -> None:
    potential = Counting()
    with pytest.raises(RecipeError, match="Did you mean 'voigt'"):
        BulkModulus(potential, average="voight")
    with pytest.raises(RecipeError, match="tian"):
        VickersHardness("tien", potential)
    with pytest.raises(RecipeError, match="fmax"):
        BulkModulus(potential, relax={"fmaxx": 0.01})
    with pytest.raises(RecipeError, match="relaxed"):
        ShearModulus(potential, ions="rigid")
    assert potential.asked == 0


def test_chgnet_on_rock_salt() -> None:
    """Measured: K 25 GPa, G 15 GPa; CHGNet is soft."""
    coords = [[0, 0, 0], [0.5] * 3]
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], coords)
    potential = ChgnetPotential()
    scores = BulkModulus(potential).evaluate([salt])
    assert 15 < scores.value[0] < 30
    assert 4 < scores.extra["shear_hill"][0] < 20
    c = scores.extra
    assert c["c11"][0] == pytest.approx(c["c33"][0], rel=1e-6)
    assert abs(c["c14"][0]) < 1e-6
