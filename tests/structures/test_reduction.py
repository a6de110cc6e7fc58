"""The reduced primitive cell is pymatgen's."""

from __future__ import annotations

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from nucleate.structures.parsing import to_structure
from nucleate.structures.reduction import reduce_cell


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
