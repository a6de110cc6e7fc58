"""Samples judged: what is computed, and what of relaxed crystals is reported."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from made_up import VOLUME, MadeUpPotential
from nucleate.errors import RecipeError
from nucleate.evaluation.judge import Energies, hull_cards, judge
from nucleate.physics.hull import Hull
from nucleate.properties.stability import EnergyAboveHull
from nucleate.protocols import Status
from nucleate.samples import Samples
from nucleate.store.experience import Evaluation, ExperienceStore
from nucleate.structures.wyckoff import encode


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


CRYSTALS = [
    caesium_chloride("Cs", "Cl", 4.1),
    caesium_chloride("Cs", "Br", 4.3),
    caesium_chloride("Cs", "Cl", 4.1),
    None,
    caesium_chloride("Cs", "I", 0.5),  # invalid
    caesium_chloride("Tl", "Cl", 3.8),
]
DIGESTS = ["cscl", "csbr", "cscl", "", "csi", "tlcl"]


def samples() -> Samples:
    """Two of the six are the same, one can't be decoded, and one is no crystal."""
    batch, _ = encode([crystal or CRYSTALS[0] for crystal in CRYSTALS])
    reasons = ["" if crystal else "undecodable" for crystal in CRYSTALS]
    return Samples(batch, list(CRYSTALS), reasons, np.zeros(len(CRYSTALS)), DIGESTS)


@pytest.fixture
def potential() -> MadeUpPotential:
    return MadeUpPotential()


def test_each_crystal_is_computed_once_however_often_it_is_drawn_and_judged(potential) -> None:
    stability, other = EnergyAboveHull(potential), EnergyAboveHull(potential, "chgnet")
    energies = Energies(stability)
    first = judge(samples(), stability, hulls=[other], energies=energies)
    assert potential.asked == 3  # of four valid ones
    again = judge(samples(), stability, hulls=[other], energies=energies)
    assert potential.asked == 3
    assert first.table["e_above_hull"].equals(again.table["e_above_hull"])
    assert judge(samples(), stability).table["e_above_hull"].equals(first.table["e_above_hull"])
    assert potential.asked == 6
    assert first.table["valid"].tolist() == [True, True, True, False, False, True]
    assert first.table["e_above_hull"].notna().tolist() == first.table["valid"].tolist()


def test_what_a_run_has_computed_is_taken_from_its_store(potential) -> None:
    stability = EnergyAboveHull(potential)
    store = ExperienceStore(":memory:")
    known = {
        "cscl": Evaluation(0.3, extra={"energy_per_atom": -3.25, "hull_support": math.nan}),
        "csbr": Evaluation(math.nan, Status.TIMEOUT, "60 s", extra={"energy_per_atom": math.nan}),
    }
    store.record(0, stability.key, known, name="e_above_hull", unit="eV/atom")
    judged = judge(samples(), stability, energies=Energies(stability, store))
    assert potential.asked == 2  # the failure is tried again
    assert judged.table["energy_per_atom"][[0, 2]].tolist() == [-3.25, -3.25]
    assert judged.table["energy_per_atom"][1] > -4.01
    relaxing = EnergyAboveHull(potential, relax=True)
    store.record(0, relaxing.key, known, name="e_above_hull", unit="eV/atom")
    potential.asked = 0
    judge(samples(), relaxing, energies=Energies(relaxing, store))
    assert potential.asked > 3  # where it relaxed to is not in the store


def test_relaxed_crystals_are_judged_and_handed_on_and_the_result_says_so(potential) -> None:
    asked = samples()
    as_drawn = judge(asked, EnergyAboveHull(potential))
    relaxed = judge(asked, EnergyAboveHull(potential, relax=True))
    assert not as_drawn.summary["settings"]["relaxed"]
    assert relaxed.summary["settings"]["relaxed"]
    assert all(card["relaxed"] for card in relaxed.summary["settings"]["hulls"].values())
    assert as_drawn.structures == asked.structures
    for row in (0, 1, 2, 5):
        assert relaxed.structures[row].volume / 2 == pytest.approx(VOLUME, rel=0.3)
        before = abs(asked.structures[row].volume / 2 - VOLUME)
        assert abs(relaxed.structures[row].volume / 2 - VOLUME) < before / 2
    assert relaxed.structures[3] is None and relaxed.structures[4] is asked.structures[4]
    valid = relaxed.table["valid"]
    assert (relaxed.table["e_above_hull"] < as_drawn.table["e_above_hull"])[valid].all()
    assert asked.structures == CRYSTALS  # the samples stay as they were drawn


def test_two_hulls_of_one_name_are_refused(potential) -> None:
    main = EnergyAboveHull(potential)
    whole = Hull.load("mp2020")
    n = len(whole.elements)
    part = Hull(whole.elements, np.zeros((0, n)), np.zeros(0), whole.references, whole.card)
    assert list(hull_cards([main, EnergyAboveHull(potential, "mp2020")])) == ["mp2020"]
    with pytest.raises(RecipeError, match="called 'mp2020'"):
        hull_cards([main, EnergyAboveHull(potential, part)])
