"""Density against its definition."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

from nucleate.properties.composition import Density
from nucleate.protocols import Property, Status


def test_density_is_mass_over_volume_and_order_is_kept() -> None:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    iron = Structure(Lattice.cubic(2.866), ["Fe", "Fe"], [[0] * 3, [0.5] * 3])
    scores = Density().evaluate([salt, iron])
    # u/Å³ in g/cm³ is 1.66054; masses of Na, Cl, Fe in u
    masses = np.array([4 * (22.98977 + 35.453), 2 * 55.845])
    np.testing.assert_allclose(scores.value, masses * 1.66054 / [5.64**3, 2.866**3], rtol=1e-4)
    assert scores.ok.all()
    assert isinstance(Density(), Property)


def test_a_flat_cell_is_invalid_and_does_not_hurt_its_neighbour() -> None:
    good = Structure(Lattice.cubic(3), ["Fe"], [[0] * 3])
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Fe"], [[0] * 3])
    scores = Density().evaluate([flat, good])
    assert scores.status == [Status.INVALID, Status.OK]
    assert np.isnan(scores.value[0])
