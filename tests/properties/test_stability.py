"""The property e_above_hull with potentials that cost nothing."""

import dataclasses

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, RecipeError
from nucleate.physics.hull import Hull
from nucleate.physics.hull_card import HullCard
from nucleate.properties.shared import Shared
from nucleate.properties.stability import EnergyAboveHull, FormationEnergy
from nucleate.protocols import CostClass, PotentialResult, Property, Status


class Toy:
    """Gives -2 eV/atom, or what is set for a formula; remembers what it was asked."""

    name = "toy"
    level_of_theory = "PBE(+U)"
    weights_hash = "0" * 64

    def __init__(self, correction="MP2020", **energies):
        self.correction, self.energies, self.asked = correction, energies, []

    def evaluate(self, structures, *, forces=False, stress=False, magmoms=False):
        assert not (forces or stress or magmoms), "an energy needs none of them"
        self.asked += [s.composition.reduced_formula for s in structures]
        found = [self.energies.get(s.composition.reduced_formula, -2.0) for s in structures]
        return [e if isinstance(e, Exception) else PotentialResult(e) for e in found]


CARD = HullCard("toy-hull", "toy", "PBE", "MP2020", "invented")


@pytest.fixture
def hull():
    return Hull(
        ["Na", "Cl"], np.array([[0.5, 0.5]]), np.array([-1.0]), np.array([-1.0, -2.0]), CARD
    )


def crystal(*species):
    coords = np.linspace(0, 0.5, len(species))[:, None] * np.ones(3)
    return Structure(Lattice.cubic(4.0), list(species), coords)


def test_value_and_extras(hull):
    """NaCl: references -1.5, formation -0.5, hull -1: 0.5 above."""
    prop = EnergyAboveHull(Toy(), hull)
    assert isinstance(prop, Property)
    scores = prop.evaluate([crystal("Na", "Cl"), crystal("Na")])
    np.testing.assert_allclose(scores.value, [0.5, -1.0])
    np.testing.assert_allclose(scores.extra["energy_per_atom"], [-2.0, -2.0])
    np.testing.assert_allclose(scores.extra["formation_energy"], [-0.5, -1.0])
    np.testing.assert_array_equal(scores.extra["hull_support"], [1.0, 0.0])
    assert scores.ok.all()


def test_support_counts_compounds_of_the_crystals_elements_only():
    """Phases of subsystems compete too; the elements themselves and other systems don't count."""
    fractions = np.array([[0.5, 0.5, 0], [0.25, 0.75, 0], [0.5, 0, 0.5], [0.2, 0.2, 0.6]])
    hull = Hull(["Na", "Cl", "O"], fractions, -np.ones(4), -np.ones(3), CARD)
    batch = [crystal("Na", "Cl"), crystal("Na", "Cl", "O"), crystal("Cl", "O"), crystal("K")]
    support = EnergyAboveHull(Toy(), hull).evaluate(batch).extra["hull_support"]
    np.testing.assert_array_equal(support, [2, 4, 0, np.nan])


def test_energies_serve_every_hull_and_formation_energies(hull):
    other = dataclasses.replace(CARD, name="other")
    larger = Hull(["Na", "Cl", "K"], np.array([[0.5, 0.5, 0]]), -np.ones(1), -np.ones(3), other)
    batch = [crystal("Na", "Cl"), crystal("K", "Cl"), crystal("Na", "Cl")]
    potential, shared = Toy(), Shared()
    props = [EnergyAboveHull(potential, hull), FormationEnergy(potential, larger)]
    together = [prop.evaluate(batch, shared) for prop in props]
    assert potential.asked == ["NaCl", "KCl"]  # the first hull has no K
    for prop, scores in zip(props, together, strict=True):
        np.testing.assert_array_equal(scores.value, prop.evaluate(batch).value)
    assert together[0].status[1] is Status.UNSUPPORTED and together[1].ok.all()
    relaxing = EnergyAboveHull(potential, hull, relax=True)
    assert relaxing.measurement != props[0].measurement == props[1].measurement


def test_formation_energy(hull):
    """The column of the energy above hull as a value; failures are the same."""
    batch = [crystal("Na", "Cl"), crystal("K", "Cl"), crystal("Na", "Cl", "Cl")]
    potential = Toy(NaCl2=RuntimeError("no neighbours"))
    above, formation = (
        make(potential, hull).evaluate(batch) for make in (EnergyAboveHull, FormationEnergy)
    )
    np.testing.assert_array_equal(formation.value, above.extra["formation_energy"])
    np.testing.assert_array_equal(formation.extra["e_above_hull"], above.value)
    assert (formation.status, formation.reason) == (above.status, above.reason)
    assert isinstance(FormationEnergy(potential, hull), Property)
    assert FormationEnergy(potential, hull).key != EnergyAboveHull(potential, hull).key
    assert "references" in FormationEnergy(potential, hull).description


def test_every_failure_is_one_entry_with_status_and_reason(hull):
    potential = Toy(NaCl2=RuntimeError("no neighbours\nmore"), NaCl3=float("nan"), NaCl4=-1e4)
    prop = EnergyAboveHull(potential, hull)
    half = Structure(Lattice.cubic(4.0), [{"Na": 0.5}, "Cl"], [[0, 0, 0], [0.5] * 3])
    batch = [
        crystal("Na", "Cl"),
        crystal("K", "Cl"),
        crystal("Na", "Cl", "Cl"),
        crystal("Na", "Cl", "Cl", "Cl"),
        crystal("Na", *["Cl"] * 4),
        half,
        crystal("Cl"),
    ]
    scores = prop.evaluate(batch)
    expected = ["ok", "unsupported", "failed", "failed", "failed", "invalid", "ok"]
    assert [status.value for status in scores.status] == expected
    assert [bool(reason) for reason in scores.reason] == [status != "ok" for status in expected]
    assert not any("\n" in reason for reason in scores.reason)
    assert "K" in scores.reason[1]
    assert "50" in scores.reason[4]
    np.testing.assert_array_equal(np.isfinite(scores.value), scores.ok)
    for name in ("energy_per_atom", "formation_energy"):
        np.testing.assert_array_equal(np.isfinite(scores.extra[name]), scores.ok)
    assert "KCl" not in potential.asked, "no energy is computed where the hull has no answer"


def test_halves_equal_the_whole(hull):
    prop = EnergyAboveHull(Toy(NaCl2=ValueError("x")), hull)
    batch = [crystal("Na", "Cl"), crystal("K"), crystal("Na", "Cl", "Cl")]
    whole, halves = prop.evaluate(batch), prop.from_energies(batch, prop.energies(batch))
    np.testing.assert_array_equal(whole.value, halves.value)
    assert (whole.status, whole.reason) == (halves.status, halves.reason)
    with pytest.raises(ValueError, match="3 structures, 1 results"):
        prop.from_energies(batch, [PotentialResult(-1.0)])


@pytest.mark.parametrize(
    ("error", "status"),
    [(TimeoutError("60 s"), "timeout"), (InputError("bad"), "invalid"), (KeyError(), "failed")],
)
def test_exceptions_of_a_pool_keep_their_status(hull, error, status):
    scores = EnergyAboveHull(Toy(), hull).from_energies([crystal("Na", "Cl")], [error])
    assert scores.status == [Status(status)]
    assert scores.reason[0]


def test_relaxed_energies(hull):
    from nucleate.physics.relax import Relaxation, RelaxStatus

    prop = EnergyAboveHull(Toy(), hull, relax=True)
    assert prop.cost is CostClass.RELAXATION
    salt = crystal("Na", "Cl")
    results = [
        Relaxation(RelaxStatus.CONVERGED, structure=salt, energy_after=-2.5),
        Relaxation(RelaxStatus.STEP_CAP, "300 steps", structure=salt, energy_after=-2.4),
        Relaxation(RelaxStatus.EXPLODED, "volume", structure=salt, energy_after=-9.0),
        Relaxation(RelaxStatus.FAILED, "no neighbours"),
    ]
    scores = prop.from_energies([salt] * 4, results)
    np.testing.assert_allclose(scores.value, [0.0, 0.1, np.nan, np.nan], atol=1e-12)
    assert [s.value for s in scores.status] == ["ok", "ok", "unsupported", "failed"]


def test_key_follows_everything_that_the_value_depends_on(hull):
    from nucleate.physics.relax import RelaxSettings

    other = Hull(
        ["Na", "Cl"], np.array([[0.5, 0.5]]), np.array([-1.1]), np.array([-1.0, -2.0]), CARD
    )
    heavier = Toy()
    heavier.weights_hash = "1" * 64
    variants = [
        EnergyAboveHull(Toy(), hull),
        EnergyAboveHull(heavier, hull),
        EnergyAboveHull(Toy(), other),
        EnergyAboveHull(Toy(), hull, relax=True),
        EnergyAboveHull(Toy(), hull, relax=RelaxSettings(fmax=0.01)),
        EnergyAboveHull(Toy(correction="none"), hull, correct=True),
    ]
    assert len({prop.key for prop in variants}) == len(variants)
    assert EnergyAboveHull(Toy(), hull).key == variants[0].key


def test_relaxation_as_a_recipe_gives_it(hull):
    from nucleate.physics.relax import RelaxSettings

    as_mapping = EnergyAboveHull(Toy(), hull, relax={"fmax": 0.01})
    assert as_mapping.key == EnergyAboveHull(Toy(), hull, relax=RelaxSettings(fmax=0.01)).key
    with pytest.raises(RecipeError, match="fmax"):
        EnergyAboveHull(Toy(), hull, relax={"fmaxx": 0.01})


def test_energy_scales_must_agree(hull):
    with pytest.raises(RecipeError, match=r"none.*MP2020"):
        EnergyAboveHull(Toy(correction="none"), hull)
    with pytest.raises(RecipeError, match="correct"):
        EnergyAboveHull(Toy(), hull, correct=True)
    raw = Hull(
        hull.elements,
        hull.phase_fractions[2:],
        hull.phase_energies[2:],
        hull.references,
        dataclasses.replace(CARD, correction="none"),
    )
    assert EnergyAboveHull(Toy(correction="none"), raw).evaluate([crystal("Na")]).ok.all()


def test_corrections_are_only_for_the_level_they_were_fitted_to(hull):
    raw = Toy(correction="none")
    raw.level_of_theory = "PBE(+U) with the pseudopotentials of OMat24"
    with pytest.raises(RecipeError, match="OMat24") as caught:
        EnergyAboveHull(raw, hull, correct=True)
    assert "nucleate hull build" in caught.value.fix


def test_a_potential_as_a_recipe_gives_it(hull):
    lj = {"name": "ase", "calculator": "ase.calculators.lj:LennardJones", "correction": "MP2020"}
    assert EnergyAboveHull(lj, hull).potential.name == "ase:ase.calculators.lj:LennardJones"


def test_raw_energies_are_corrected():
    """MgO: the oxide correction is -0.687 eV per oxygen."""
    card = dataclasses.replace(CARD, name="mgo")
    hull = Hull(["O", "Mg"], np.zeros((0, 2)), np.zeros(0), np.array([-2.0, -2.0]), card)
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Mg", "O"], [[0] * 3, [0.5] * 3])
    scores = EnergyAboveHull(Toy(correction="none"), hull, correct=True).evaluate([salt])
    assert scores.value[0] == pytest.approx(-0.687 / 2, abs=1e-3)


def test_an_empty_batch(hull):
    assert len(EnergyAboveHull(Toy(), hull).evaluate([])) == 0


def test_chgnet_puts_rock_salt_near_the_shipped_hull():
    prop = EnergyAboveHull()
    coords = [[0, 0, 0], [0.5] * 3]
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], coords)
    scores = prop.evaluate([salt.get_primitive_structure()])
    assert abs(scores.value[0]) < 0.05
    assert prop.description["hull"] == "mp2020"
    assert prop.description["correction"] == "MP2020"
