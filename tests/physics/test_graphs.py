"""Reduced crystal graphs: classes as few as symmetry allows."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.physics.cells import Cell, as_cell, find_bonds
from nucleate.physics.graphs import reduce_graphs


def rock_salt() -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def random_cell(seed: int, n_atoms: int = 5) -> Cell:
    rng = np.random.default_rng(seed)
    lattice = 4.5 * np.eye(3) + rng.uniform(-1.5, 1.5, (3, 3))
    return Cell(lattice, rng.integers(1, 90, n_atoms), rng.uniform(-1.0, 2.0, (n_atoms, 3)))


def test_rock_salt_has_two_atoms_and_few_messages() -> None:
    cell = as_cell(rock_salt())
    graph = reduce_graphs([cell], [find_bonds(cell, 6.0, 3.0)])
    assert sorted(graph.atom_number) == [11, 17]
    assert graph.atom_count.tolist() == [4, 4]
    shells = 4  # distances below 6 Å: a/2, a/√2, a√3/2 and a
    assert len(graph.message_centre) == 2 * shells
    neighbours = np.bincount(graph.message_centre, graph.message_count)
    assert neighbours.tolist() == [6 + 12 + 8 + 6] * 2
    # One bond class below 3 Å with angles of 90 and 180 degrees at either end.
    assert graph.n_short == 1
    assert sorted(graph.angle_count.tolist()) == [1, 1, 4, 4]


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_whole_crystal(seed: int) -> None:
    cell = random_cell(seed)
    doubled = as_cell(
        Structure(Lattice(cell.lattice), cell.numbers.tolist(), cell.frac_coords) * (2, 1, 1)
    )
    bonds = [find_bonds(c, 6.0, 3.0) for c in (cell, doubled)]
    one, two = (reduce_graphs([c], [b]) for c, b in zip((cell, doubled), bonds, strict=True))
    assert len(two.atom_class) == 2 * len(one.atom_class)
    assert len(one.atom_number) == len(two.atom_number)
    assert len(one.message_centre) == len(two.message_centre)
    total = (one.message_count * one.atom_count[one.message_centre]).sum()
    assert total == 2 * len(bonds[0].first)


def test_classes_do_not_depend_on_the_batch() -> None:
    cells = [random_cell(seed) for seed in range(3)] + [as_cell(rock_salt())]
    bonds = [find_bonds(c, 6.0, 3.0) for c in cells]
    together = reduce_graphs(cells, bonds)
    for k, (cell, own) in enumerate(zip(cells, bonds, strict=True)):
        alone = reduce_graphs([cell], [own])
        assert (together.atom_crystal == k).sum() == len(alone.atom_number)
        mine = together.atom_crystal[together.message_centre] == k
        assert mine.sum() == len(alone.message_centre)


def test_every_bond_and_angle_belongs_to_a_class() -> None:
    cells = [random_cell(seed) for seed in range(4)] + [as_cell(rock_salt())]
    graph = reduce_graphs(cells, [find_bonds(c, 6.0, 3.0) for c in cells], members=True)
    assert graph.members is not None
    length = np.sqrt((graph.members.vector**2).sum(1))
    assert np.allclose(graph.bond_length[graph.members.bond_class], length, atol=1e-4)
    unit = graph.members.vector / length[:, None]
    u, v = (
        unit[graph.members.pair_bond[:, side]] * graph.members.pair_sign[:, side, None]
        for side in (0, 1)
    )
    angle = np.arccos(np.clip((u * v).sum(1) * (1 - 1e-6), -1, 1))
    for side in (0, 1):
        assert np.allclose(graph.angle[graph.members.pair_class[:, side]], angle, atol=1e-4)
