"""Operations move atoms onto atoms; primitive cells hold the same crystal, not turned."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from nucleate.physics.cells import as_cell, as_structure
from nucleate.physics.symmetry import find_symmetry, primitive_cell

CRYSTALS = {
    "rock salt": ("Fm-3m", Lattice.cubic(5.69), [[0] * 3, [0.5] * 3], 4, 48),
    "monoclinic": ("C2/c", Lattice.monoclinic(9, 5, 6, 110), [[0.1, 0.2, 0.3], [0, 0.55, 0.25]], 2, 4),
    "rhombohedral": ("R-3m", Lattice.hexagonal(4, 15), [[0, 0, 0.1], [0, 0, 0]], 3, 12),
    "trigonal": ("P3_121", Lattice.hexagonal(4, 9), [[0.1, 0.2, 0.1], [0.3, 0, 1 / 3]], 1, 6),
}  # fmt: skip


def turned(name: str) -> Structure:
    group, lattice, coords, _, _ = CRYSTALS[name]
    crystal = Structure.from_spacegroup(group, lattice, ["Na", "Cl"], coords)
    matrix = crystal.lattice.matrix @ Rotation.random(random_state=3).as_matrix()
    return Structure(Lattice(matrix), crystal.species, crystal.frac_coords)


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_primitive_cell_is_the_same_lattice_in_the_same_frame(name: str) -> None:
    crystal = turned(name)
    cell = primitive_cell(as_cell(crystal), 0.01)
    assert len(crystal) == len(cell.numbers) * CRYSTALS[name][3]
    multiples = crystal.lattice.matrix @ np.linalg.inv(cell.lattice)
    np.testing.assert_allclose(multiples, multiples.round(), atol=1e-9)
    matcher = StructureMatcher(0.01, 0.01, 0.1, primitive_cell=True, scale=False)
    assert matcher.fit(crystal, as_structure(cell))
    # The distances from an atom along each direction are those of the crystal that was given.
    again = as_structure(cell)
    centre = crystal[0].coords
    site = min(
        (site for site in again if site.specie == crystal[0].specie),
        key=lambda site: _misfit(crystal, centre, again, site.coords),
    )
    assert _misfit(crystal, centre, again, site.coords) < 1e-6


def _misfit(one: Structure, at: np.ndarray, other: Structure, there: np.ndarray) -> float:
    """How far the neighbours of a point are from those of another one, Å."""
    first = np.array([n.coords - at for n in one.get_sites_in_sphere(at, 4.5)])
    second = np.array([n.coords - there for n in other.get_sites_in_sphere(there, 4.5)])
    if len(first) != len(second):
        return np.inf
    return float(np.linalg.norm(first[:, None] - second[None], axis=2).min(1).max())


@pytest.mark.parametrize("name", CRYSTALS)
def test_operations_map_the_crystal_onto_itself(name: str) -> None:
    cell = primitive_cell(as_cell(turned(name)), 0.01)
    symmetry = find_symmetry(cell, 0.01)
    turns = symmetry.turns(cell.lattice)
    assert len(turns) == CRYSTALS[name][4]
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.eye(3)[None] + 0 * turns, atol=1e-9
    )
    cartesian = cell.frac_coords @ cell.lattice
    for turn, image in zip(turns, symmetry.images, strict=True):
        assert sorted(image) == list(range(len(image)))
        assert np.array_equal(cell.numbers[image], cell.numbers)
        # Differences of atoms turn into differences of their images, up to lattice vectors.
        moved = (cartesian - cartesian[0]) @ turn - (cartesian[image] - cartesian[image[0]])
        shift = moved @ np.linalg.inv(cell.lattice)
        np.testing.assert_allclose(shift, shift.round(), atol=1e-6)
