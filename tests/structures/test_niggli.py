"""The cell that pymatgen gives, whatever basis the lattice is described in."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice

from nucleate.structures.niggli import niggli

LATTICES = {
    "cubic F": Lattice((np.ones((3, 3)) - np.eye(3)) * 2.1),
    "cubic I": Lattice((np.ones((3, 3)) - 2 * np.eye(3)) * 1.7),
    "hexagonal": Lattice.hexagonal(3.1, 5.2),
    "rhombohedral": Lattice.rhombohedral(4.0, 104.0),
    "monoclinic": Lattice.monoclinic(5.0, 3.0, 7.0, 110.0),
    "nearly orthorhombic": Lattice.from_parameters(4.0, 5.0, 6.0, 90.3, 89.8, 90.1),
    "triclinic": Lattice.from_parameters(4.0, 5.0, 6.0, 71.0, 82.0, 63.0),
}


@pytest.mark.parametrize("name", LATTICES)
def test_equal_to_pymatgen_in_every_basis(name: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        basis = np.eye(3, dtype=int)
        for _ in range(3):
            i, j = rng.permutation(3)[:2]
            basis[i] += rng.integers(-2, 3) * basis[j]
        matrix = basis @ LATTICES[name].matrix
        found, expected = niggli(matrix[None])[0], Lattice(matrix).get_niggli_reduced_lattice()
        assert np.linalg.det(found) == pytest.approx(abs(np.linalg.det(matrix)))
        steps = found @ np.linalg.inv(matrix)
        assert np.abs(steps - np.round(steps)).max() < 1e-6  # the same lattice, not turned
        assert Lattice(found).parameters == pytest.approx(expected.parameters, abs=1e-4)
