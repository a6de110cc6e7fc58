"""The smallest coincident area equals that of pymatgen's search over all matches."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.interfaces.substrate_analyzer import SubstrateAnalyzer
from pymatgen.analysis.interfaces.zsl import reduce_vectors
from pymatgen.core import Lattice, Structure
from pymatgen.core.surface import SlabGenerator

from nucleate.physics.coincidence import (
    conventional_lattice,
    facets,
    smallest_coincidence,
    surface_vectors,
)

ROCK_SALT = ([0, 0, 0], [0.5, 0.5, 0.5])


def silicon() -> Structure:
    return Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43102), ["Si"], [[0, 0, 0]])


FILMS = {
    "cubic": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], ROCK_SALT),
    "hexagonal": Structure.from_spacegroup(
        "P6_3mc",
        Lattice.hexagonal(3.19, 5.19),
        ["Ga", "N"],
        [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.377]],
    ),
    "tetragonal": Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    ),
    "monoclinic": Structure.from_spacegroup(
        "P2/m", Lattice.monoclinic(5.1, 5.9, 6.3, 99), ["Zr", "O"], [[0, 0, 0], [0.3, 0, 0.4]]
    ),
}


def test_facets_are_counted_once() -> None:
    assert facets(1)[:3] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len(facets(1)) == 13
    assert (2, 0, 0) not in facets(2)


@pytest.mark.parametrize("facet", [(1, 0, 0), (0, 1, 1), (1, -1, 1), (2, 1, 0), (3, -2, 1)])
def test_surface_vectors_span_the_plane_lattice(facet) -> None:
    lattice = Lattice.from_parameters(4, 5, 6.5, 80, 95, 110)
    a, b = surface_vectors(lattice.matrix, facet)
    normal = lattice.reciprocal_lattice.get_cartesian_coords(facet)
    assert abs(a @ normal) < 1e-9 and abs(b @ normal) < 1e-9
    # The area of a plane lattice is the cell's volume over the distance of its planes.
    assert np.linalg.norm(np.cross(a, b)) == pytest.approx(lattice.volume / lattice.d_hkl(facet))


def test_surface_vectors_are_those_of_slabs() -> None:
    film = FILMS["monoclinic"]
    for facet in facets(1):
        slab = SlabGenerator(film, facet, 20, 15, primitive=False).get_slab().oriented_unit_cell
        expected = reduce_vectors(*slab.lattice.matrix[:2])
        ours = surface_vectors(film.lattice.matrix, facet)
        np.testing.assert_allclose(
            np.linalg.norm(ours, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-6
        )


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize("on", [(1, 0, 0), None])
def test_area_is_the_least_of_all_matches(name, on) -> None:
    film = Structure(
        Lattice(conventional_lattice(FILMS[name])), ["H"], [[0, 0, 0]]
    )  # the search sees the lattice only
    analyser = SubstrateAnalyzer(max_area=100)
    millers = facets(1)
    matches = analyser.calculate(
        film,
        silicon(),
        film_millers=millers,
        substrate_millers=[on] if on else [(1, 0, 0), (1, 1, 0), (1, 1, 1)],
    )
    expected = min((match.match_area for match in matches), default=None)
    found = smallest_coincidence(
        film.lattice.matrix, silicon().lattice.matrix, millers, [on] if on else millers, 100
    )
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.area == pytest.approx(expected)
        assert found.mismatch <= 0.03


def test_a_film_fits_itself_on_its_smallest_facet() -> None:
    cubic = np.eye(3) * 5.0
    found = smallest_coincidence(cubic, cubic, facets(1), facets(1))
    assert (found.area, found.mismatch) == (pytest.approx(25.0), pytest.approx(0.0, abs=1e-9))
    assert (found.film, found.substrate) == ((1, 0, 0), (1, 0, 0))
    assert smallest_coincidence(cubic, cubic * 1.5, facets(1), [(1, 0, 0)], 40.0) is None
