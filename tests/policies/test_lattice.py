"""Six real numbers and a cell are two ways to write the same, and every six are a cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.policies import lattice
from nucleate.structures import symmetry

GROUPS = np.arange(1, 231)


def cells(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random cell of each space group, and numbers of atoms."""
    rng = np.random.default_rng(seed)
    free = np.concatenate([rng.uniform(2, 15, (230, 3)), rng.uniform(70, 115, (230, 3))], 1)
    return symmetry.symmetrise_lattice(GROUPS, free), rng.integers(1, 100, 230)


def test_cells_of_all_groups_survive_the_round_trip():
    cell, n_atoms = cells(0)
    back = lattice.to_lattice(lattice.to_parameters(cell, n_atoms), n_atoms, GROUPS)
    np.testing.assert_allclose(back, cell, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 2.0))
def test_every_real_vector_is_a_cell_of_its_crystal_system(seed, width):
    rng = np.random.default_rng(seed)
    u, n_atoms = rng.normal(0, width, (230, 6)), rng.integers(1, 200, 230)
    cell = lattice.to_lattice(u, n_atoms, GROUPS)
    assert np.isfinite(cell).all() and (cell[:, :3] > 0).all()
    assert ((cell[:, 3:] > 0) & (cell[:, 3:] < 180)).all()
    np.testing.assert_allclose(symmetry.symmetrise_lattice(GROUPS, cell), cell, rtol=1e-9)
    volume = np.linalg.det(symmetry.lattice_matrix(cell))
    np.testing.assert_allclose(volume, n_atoms * np.exp(3 * u[:, lattice.SCALE]), rtol=1e-5)
    free = lattice.free_parameters()[1:]
    back = lattice.to_parameters(cell, n_atoms)
    np.testing.assert_allclose(back[free], u[free], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("first", "last", "free", "rule"),
    [
        (1, 2, 6, lambda c: True),
        (3, 15, 4, lambda c: c[3] == c[5] == 90 != c[4]),
        (16, 74, 3, lambda c: c[3] == c[4] == c[5] == 90),
        (75, 142, 2, lambda c: c[0] == c[1] and c[3] == c[4] == c[5] == 90),
        (143, 194, 2, lambda c: c[0] == c[1] and c[3] == c[4] == 90 and c[5] == 120),
        (195, 230, 1, lambda c: c[0] == c[1] == c[2] and c[3] == c[4] == c[5] == 90),
    ],
)
def test_each_crystal_system_draws_what_it_leaves_free(first, last, free, rule):
    assert (lattice.free_parameters()[first : last + 1].sum(1) == free).all()
    u = np.random.default_rng(1).normal(0, 0.5, (230, 6))
    cell = lattice.to_lattice(u, np.ones(230), GROUPS).round(9)
    assert all(rule(row) for row in cell[first - 1 : last])
