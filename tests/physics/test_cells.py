"""Cells and bonds: all neighbours found, absurd cells refused."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError
from nucleate.physics.cells import Cell, as_cell, find_bonds


def random_cell(seed: int, n_atoms: int = 5) -> Cell:
    rng = np.random.default_rng(seed)
    lattice = 4.5 * np.eye(3) + rng.uniform(-1.5, 1.5, (3, 3))
    return Cell(lattice, rng.integers(1, 90, n_atoms), rng.uniform(-1.0, 2.0, (n_atoms, 3)))


@pytest.mark.parametrize("seed", range(8))
def test_bonds_equal_pymatgen(seed: int) -> None:
    cell = random_cell(seed)
    structure = Structure(Lattice(cell.lattice), cell.numbers.tolist(), cell.frac_coords)
    centre, neighbour, _, distance = structure.get_neighbor_list(6.0)
    bonds = find_bonds(cell, 6.0, 3.0)
    both = np.concatenate([bonds.first, bonds.second]), np.concatenate([bonds.second, bonds.first])
    ours = sorted(zip(*both, np.tile(bonds.length, 2).round(8), strict=True))
    theirs = sorted(zip(centre, neighbour, distance.round(8), strict=True))
    assert len(ours) == len(theirs)
    assert np.allclose(ours, theirs, atol=1e-7)
    assert bonds.n_short == (bonds.length < 3.0).sum()


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        (Cell(np.eye(3) * 0.01, np.array([1]), np.zeros((1, 3))), "volume"),
        (Cell(np.eye(3) * 5.0, np.array([1, 1]), np.zeros((2, 3))), "apart"),
        (Cell(np.eye(3) * 50.0, np.array([1]), np.zeros((1, 3))), "no neighbour"),
        (Cell(np.diag([1e-3, 1e3, 1e3]), np.array([1]), np.zeros((1, 3))), "apart"),
        (Cell(np.diag([1e-6, 1e6, 1e2]), np.array([1]), np.zeros((1, 3))), "skewed"),
    ],
)
def test_absurd_cells_are_refused(cell: Cell, word: str) -> None:
    with pytest.raises(InputError, match=word):
        find_bonds(cell, 6.0, 3.0)


def test_not_a_number_and_disorder_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        as_cell(Cell(np.eye(3) * np.nan, np.array([1]), np.zeros((1, 3))))
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(InputError, match="partially"):
        as_cell(alloy)
