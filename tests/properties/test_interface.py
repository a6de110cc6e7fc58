"""Coincident areas as a property."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.interfaces.substrate_analyzer import SubstrateAnalyzer
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from nucleate import plugins
from nucleate.errors import InputError, RecipeError
from nucleate.execution.local import ProcessPool
from nucleate.objectives.dry_run import dry_run
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Linear
from nucleate.properties.interface import SUBSTRATES, CoincidentArea, read_substrate
from nucleate.protocols import CostClass, Property, Status


def germanium() -> Structure:
    return Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.50), ["Ge"], [[0, 0, 0]])


def half() -> Structure:
    return Structure(Lattice.cubic(4.0), [{"Ar": 0.5}], [[0] * 3])


def test_a_film_whose_lattice_fits_has_the_substrates_cell() -> None:
    prop = CoincidentArea()
    assert plugins.load(plugins.PROPERTIES, prop.name) is CoincidentArea
    assert isinstance(prop, Property) and prop.cost is CostClass.MODEL
    crystals = [germanium().get_primitive_structure(), germanium()]
    scores = prop.evaluate(crystals)
    np.testing.assert_allclose(scores.value, 5.50**2)
    np.testing.assert_allclose(scores.extra["mismatch"], 1 - 5.43102 / 5.50, atol=1e-6)
    assert [scores.extra[f"film_{i}"][0] for i in "hkl"] == [1, 0, 0]


def test_equals_the_search_of_pymatgen() -> None:
    """With the settings of MatInvent, on all facets."""
    coords = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.377]]
    film = Structure.from_spacegroup("P6_3mc", Lattice.hexagonal(3.80, 6.2), ["Zn", "O"], coords)
    silicon = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43102), ["Si"], [[0, 0, 0]])
    standard = SpacegroupAnalyzer(film, symprec=0.1).get_conventional_standard_structure()
    matches = SubstrateAnalyzer(max_area=60).calculate(standard, silicon)
    expected = min(match.match_area for match in matches)
    [area] = CoincidentArea("Si", max_area=60).evaluate([film]).value
    assert area == pytest.approx(expected, rel=1e-6)


def test_failures_have_reasons() -> None:
    scores = CoincidentArea(max_area=20).evaluate([germanium(), half()])
    assert scores.status == [Status.UNSUPPORTED, Status.INVALID]
    assert scores.reason[0] == "no coincident area up to 20 Å² on Si(100)"
    assert scores.reason[1]
    assert np.isnan(scores.value).all()
    assert len(CoincidentArea().evaluate([])) == 0


def test_films_without_a_match_do_not_look_like_a_broken_set_up() -> None:
    films = [germanium().copy() for _ in range(4)]
    objective = Objective([Term(CoincidentArea(max_area=20), Linear(type="linear", low=0, high=9))])
    [trial] = dry_run(objective, films, list("abcd"))
    assert trial.ok == 0
    counted = objective.score(films, list("abcd")).counts
    assert counted == {"unsupported: no coincident area up to 20 Å² on Si(100)": 4}


def test_workers_give_the_same_and_a_time_out_costs_one_crystal() -> None:
    crystals = [germanium(), half(), germanium().get_primitive_structure()]
    alone = CoincidentArea().evaluate(crystals)
    with ProcessPool(1) as pool:
        pooled = CoincidentArea(pool=pool).evaluate(crystals)
        slow = CoincidentArea(max_miller=9, max_area=9000, timeout=0.2, pool=pool)
        late = slow.evaluate(crystals[:1])
    np.testing.assert_array_equal(alone.value, pooled.value)
    assert (alone.status, alone.reason) == (pooled.status, pooled.reason)
    assert late.status == [Status.TIMEOUT]


def test_substrates_are_read(tmp_path) -> None:
    assert read_substrate("Si(100)")[1] == (1, 0, 0)
    assert read_substrate("ZnO(1-10)")[1] == (1, -1, 0)
    assert read_substrate("Si(0,-11,1)")[1] == (0, -11, 1)
    assert read_substrate("Si(200)")[1] == (1, 0, 0)
    lattice, facet = read_substrate("Al2O3")
    assert facet is None
    lengths = Lattice(lattice).parameters
    assert lengths == pytest.approx((4.7587, 4.7587, 12.9929, 90, 90, 120))
    file = tmp_path / "mine (1).cif"
    germanium().to_file(str(file))
    lattice, facet = read_substrate(f"{file}(110)")
    assert facet == (1, 1, 0)
    np.testing.assert_allclose(lattice, np.eye(3) * 5.5, atol=1e-6)
    assert all(read_substrate(name)[0].shape == (3, 3) for name in SUBSTRATES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"substrate": "GaAss(100)"}, "GaAss"),
        ({"substrate": "Si(10)"}, "facet"),
        ({"substrate": "Si(000)"}, "facet"),
        ({"max_miller": 0}, "max_miller"),
        ({"max_area": -1}, "max_area"),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    with pytest.raises(RecipeError, match=message):
        CoincidentArea(**settings)


def test_a_substrate_file_that_cannot_be_read_is_refused(tmp_path) -> None:
    file = tmp_path / "empty.cif"
    file.write_text("nothing")
    with pytest.raises(InputError):
        CoincidentArea(f"{file}(100)")


def test_key_follows_everything_that_the_value_depends_on() -> None:
    variants = [
        CoincidentArea(),
        CoincidentArea("Si"),
        CoincidentArea("Si(110)"),
        CoincidentArea("Ge(100)"),
        CoincidentArea(max_miller=2),
        CoincidentArea(max_area=100),
    ]
    assert len({prop.key for prop in variants}) == len(variants)
