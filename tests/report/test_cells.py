"""Drawn cells: where the atoms, bonds and edges are."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.report.cells import conventional, drawing


@pytest.fixture
def rock_salt() -> Structure:
    face = 5.64 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(face, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_primitive_rock_salt_is_drawn_as_the_cube_with_27_atoms(rock_salt: Structure) -> None:
    drawn = drawing(rock_salt)
    assert len(conventional(rock_salt)) == 8
    assert len(drawn["atoms"]) == 27
    lengths = [np.linalg.norm(np.subtract(a, b)) for a, b in drawn["edges"]]
    assert len(lengths) == 12
    assert lengths == pytest.approx([5.64] * 12, abs=2e-3)


def test_every_bond_of_rock_salt_is_half_a_cell_long(rock_salt: Structure) -> None:
    drawn = drawing(rock_salt)
    xyz = np.array([atom[:3] for atom in drawn["atoms"]])
    lengths = [np.linalg.norm(xyz[i] - xyz[j]) for i, j in drawn["bonds"]]
    assert lengths == pytest.approx([2.82] * 54, abs=2e-3)


def test_metals_are_drawn_without_bonds() -> None:
    drawn = drawing(Structure(Lattice.cubic(2.9), ["Fe", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert drawn["bonds"] == []
    assert {element["symbol"] for element in drawn["elements"]} == {"Fe", "Al"}


def test_drawing_is_centred(rock_salt: Structure) -> None:
    xyz = np.array([atom[:3] for atom in drawing(rock_salt)["atoms"]])
    assert xyz.mean(axis=0) == pytest.approx([0, 0, 0], abs=2e-3)
