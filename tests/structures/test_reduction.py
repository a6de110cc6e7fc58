"""The reduced primitive cell is pymatgen's."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from nucleate.structures.parsing import to_structure
from nucleate.structures.reduction import reduce_cell, reduce_cells


def test_primitive_cell_is_pymatgens():
    rng = np.random.default_rng(5)
    for size in (1, 2, 3, 4, 6):
        lattice = np.diag(rng.uniform(2.5, 4.5, 3)) + rng.normal(scale=0.3, size=(3, 3))
        numbers, frac = np.array([3, 8, 3]), rng.uniform(size=(3, 3))
        steps = np.arange(size)[:, None, None] * [1 / size, 0, 0]
        many = (frac / [size, 1, 1] + steps).reshape(-1, 3) + rng.normal(
            scale=0.01, size=(3 * size, 3)
        )
        cell = lattice * [[size], [1], [1]], np.tile(numbers, size), many
        structure = to_structure(cell).get_reduced_structure()
        theirs, ours = structure.get_primitive_structure(), reduce_cell(cell)
        assert sorted(theirs.atomic_numbers) == sorted(ours.numbers.tolist())
        assert np.allclose(sorted(theirs.lattice.abc), ours.lengths * ours.volume ** (1 / 3))
        found = to_structure((ours.matrix, ours.numbers, ours.frac_coords))
        rms, _ = StructureMatcher(primitive_cell=False).get_rms_dist(theirs, found)
        assert rms < 1e-6


@pytest.mark.parametrize(
    "lattice",
    [
        np.diag([5.0, 5.0, 5.0]),
        (np.ones((3, 3)) - np.eye(3)) * 3.6,
        (np.ones((3, 3)) - 2 * np.eye(3)) * 2.9,
        np.array([[5.0, 0.0, 0.0], [-2.5, 18.75**0.5, 0.0], [0.0, 0.0, 7.0]]),
        np.diag([4.0, 5.0, 7.0]),
    ],
    ids=["cubic P", "cubic F", "cubic I", "hexagonal", "orthorhombic"],
)
def test_an_atom_off_by_about_the_tolerance_along_edges_that_are_not_the_only_ones(lattice):
    rng = np.random.default_rng(7)
    numbers, half = np.array([3, 3]), 0
    for _ in range(60):
        basis = np.eye(3)
        for _ in range(3):
            i, j = rng.permutation(3)[:2]
            basis[i] += rng.integers(-1, 2) * basis[j]
        matrix = basis @ lattice
        off = rng.normal(size=3)
        off *= rng.uniform(0.2, 0.4) / np.linalg.norm(off)
        part = rng.permutation([1, 0, rng.integers(2)]) / 2 @ lattice
        frac = np.array([np.zeros(3), part + off]) @ np.linalg.inv(matrix)
        theirs = to_structure((matrix, numbers, frac)).get_reduced_structure()
        size = len(theirs.get_primitive_structure())
        assert len(reduce_cell((matrix, numbers, frac)).numbers) == size
        half += size == 1
    assert 10 < half < 50


def test_a_crystal_is_reduced_as_if_alone():
    rng = np.random.default_rng(6)
    numbers = np.array([3, 8, 8])
    cells = [
        (np.diag(rng.uniform(2.5, 4.5, 3)), numbers[:n], rng.uniform(size=(n, 3)))
        for n in (3, 1, 2, 3)
    ]
    cells.insert(1, (np.eye(3) * 4, numbers, np.full((3, 3), np.nan)))
    cells.insert(3, (np.zeros((3, 3)), numbers, cells[0][2]))
    cells.append((np.eye(3) * 4, numbers[:0], np.zeros((0, 3))))
    together = reduce_cells(cells)
    assert [cell is None for cell in together] == [0, 1, 0, 1, 0, 0, 1]
    for cell, found in zip(cells, together, strict=True):
        if found is not None:
            assert np.array_equal(reduce_cell(cell).frac_coords, found.frac_coords)
