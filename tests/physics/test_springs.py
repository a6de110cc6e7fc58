"""The stiffness that relaxations start from."""

from __future__ import annotations

import numpy as np
import pytest

from nucleate.physics.cells import Cell
from nucleate.physics.springs import FLOOR, STRAINS, spring_stiffness

LATTICE = np.array([[4.1, 0.2, 0.0], [0.3, 4.6, -0.4], [0.1, 0.5, 5.2]])
CELL = Cell(LATTICE, np.array([11, 17, 8]), np.array([[0, 0, 0], [0.4, 0.5, 0.6], [0.1, 0.4, 0.7]]))


def test_strains_are_an_orthonormal_basis_of_symmetric_matrices() -> None:
    np.testing.assert_allclose(np.einsum("kij,lij->kl", STRAINS, STRAINS), np.eye(6), atol=1e-15)
    np.testing.assert_array_equal(STRAINS, STRAINS.transpose(0, 2, 1))


def test_stiffness_is_symmetric_and_positive() -> None:
    stiffness = spring_stiffness(CELL)
    np.testing.assert_allclose(stiffness, stiffness.T, atol=1e-12)
    assert np.linalg.eigvalsh(stiffness).min() > 0


def test_moving_all_atoms_together_meets_the_floor_alone() -> None:
    move = np.append(np.tile([1.0, -2.0, 0.5], 3), np.zeros(6))
    np.testing.assert_allclose(spring_stiffness(CELL) @ move, FLOOR * move, atol=1e-10)


def test_turns_with_the_crystal() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = CELL._replace(lattice=LATTICE @ turn)
    values, others = (np.linalg.eigvalsh(spring_stiffness(c)) for c in (CELL, turned))
    np.testing.assert_allclose(values, others, rtol=1e-9)


def test_strain_of_a_doubled_cell_costs_twice_as_much() -> None:
    """Per strain, whose coordinate is as many times larger as the cell has atoms."""
    doubled = Cell(
        LATTICE * np.array([[2.0], [1.0], [1.0]]),
        np.tile(CELL.numbers, 2),
        np.concatenate([CELL.frac_coords * [0.5, 1, 1] + [x, 0, 0] for x in (0.0, 0.5)]),
    )
    costs = []
    for cell in (CELL, doubled):
        n = len(cell.numbers)
        costs.append((spring_stiffness(cell)[3 * n :, 3 * n :] - FLOOR / n * np.eye(6)) * n**2)
    np.testing.assert_allclose(costs[1], 2 * costs[0], rtol=1e-9)


def test_a_lonely_atom_has_the_floor() -> None:
    lonely = Cell(np.eye(3) * 20, np.array([18]), np.zeros((1, 3)))
    np.testing.assert_array_equal(spring_stiffness(lonely), FLOOR * np.eye(9))


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_stays_finite_for_dense_and_thin_cells(scale: float) -> None:
    assert np.isfinite(spring_stiffness(CELL._replace(lattice=LATTICE * scale))).all()
