"""The predictors that ship, on crystals whose numbers everybody knows."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.properties.electronic import BandGap, DielectricTotal, FigureOfMerit, RefractiveIndex
from nucleate.protocols import Property, Status


def cubic(group: str, edge: float, species: list[str], sites: list[list[float]]) -> Structure:
    return Structure.from_spacegroup(group, Lattice.cubic(edge), species, sites)


SALT = cubic("Fm-3m", 5.69, ["Na", "Cl"], [[0] * 3, [0.5] * 3])
SILICON = cubic("Fd-3m", 5.47, ["Si"], [[0] * 3])
DIAMOND = cubic("Fd-3m", 3.57, ["C"], [[0] * 3])
COPPER = cubic("Fm-3m", 3.61, ["Cu"], [[0] * 3])
MAGNESIA = cubic("Fm-3m", 4.25, ["Mg", "O"], [[0] * 3, [0.5] * 3])
LEAD_TELLURIDE = cubic("Fm-3m", 6.56, ["Pb", "Te"], [[0] * 3, [0.5] * 3])


def test_band_gaps() -> None:
    prop = BandGap()
    assert isinstance(prop, Property)
    assert (prop.name, prop.unit) == ("band_gap", "eV")
    crystals = [SALT, SILICON, COPPER, MAGNESIA, DIAMOND]
    gaps = prop.evaluate(crystals).value
    pbe = np.array([5.0, 0.6, 0.0, 4.5, 4.1])
    assert np.abs(gaps - pbe).max() < 1.0
    assert gaps[2] < 0.1
    assert gaps.min() >= 0


def test_refractive_indices() -> None:
    prop = RefractiveIndex()
    assert (prop.name, prop.unit) == ("refractive_index", "")
    indices = prop.evaluate([SALT, MAGNESIA, LEAD_TELLURIDE]).value
    assert indices[0] == pytest.approx(1.5, abs=0.25)
    assert indices[1] == pytest.approx(1.75, abs=0.25)
    assert indices[2] > 3


def test_dielectric_constants() -> None:
    prop = DielectricTotal()
    assert (prop.name, prop.unit) == ("dielectric_total", "")
    values = prop.evaluate([SALT, MAGNESIA, DIAMOND]).value
    np.testing.assert_allclose(values, [6.5, 11.0, 5.9], rtol=0.35)
    rutile = Structure.from_spacegroup(
        "P4_2/mnm",
        Lattice.tetragonal(4.65, 2.97),
        ["Ti", "O"],
        [[0, 0, 0], [0.305, 0.305, 0]],
    )
    [(_, _, tensor)] = prop.predictor.predict([rutile], tensor=True)
    np.testing.assert_allclose(tensor, np.diag(np.diag(tensor)), atol=0.01)
    assert tensor[0, 0] == pytest.approx(tensor[1, 1], abs=0.01)
    assert tensor[2, 2] > tensor[0, 0]  # rutile's is larger along c


def test_the_figure_of_merit_is_a_product_in_ev() -> None:
    prop = FigureOfMerit()
    assert (prop.name, prop.unit) == ("figure_of_merit", "eV")
    radium = SALT.copy()
    radium.replace_species({"Na": "Ra"})
    scores = prop.evaluate([SALT, radium, COPPER])
    assert scores.status == [Status.OK, Status.UNSUPPORTED, Status.OK]
    assert "Ra" in scores.reason[1]
    assert scores.value[0] == pytest.approx(
        BandGap().evaluate([SALT]).value[0] * DielectricTotal().evaluate([SALT]).value[0], rel=1e-4
    )
    assert scores.value[2] < 1
    assert {"band_gap", "dielectric_total", "figure_of_merit_spread"} <= scores.extra.keys()


def test_descriptions_say_where_numbers_hold() -> None:
    described = BandGap().description
    assert "Materials Project" in described["attribution"]
    assert described["test"]["crystals"] > 1000
    assert "O" in described["elements"]
