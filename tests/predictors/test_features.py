"""Features of a frozen CHGNet: its own energies follow from them, and directions turn along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from nucleate.errors import InputError
from nucleate.physics.cells import Cell
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.physics.chgnet_network import WIDTH
from nucleate.predictors.features import COMPONENTS, CrystalFeatures, FeatureBatch, FrozenChgnet
from nucleate.predictors.predictor import frozen_chgnet

ZINCBLENDE = Cell(
    2.7 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    np.array([30, 16]),
    np.array([[0, 0, 0], [0.25, 0.25, 0.25]]),
)
TRICLINIC = Cell(
    np.array([[4.1, 0.2, 0.1], [-0.4, 5.3, 0.3], [0.5, -0.6, 6.2]]),
    np.array([26, 8, 15, 8]),
    np.array([[0.03, 0.11, 0.07], [0.52, 0.43, 0.35], [0.31, 0.81, 0.62], [0.77, 0.25, 0.83]]),
)


def one(cell: Cell, bonds: bool = False) -> CrystalFeatures:
    [found] = frozen_chgnet().features([cell], bonds=bonds)
    assert isinstance(found, CrystalFeatures), found
    return found


def test_the_readout_makes_chgnets_energies_and_moments_of_the_features() -> None:
    potential = ChgnetPotential()
    network = potential._network
    for cell in (ZINCBLENDE, TRICLINIC):
        [expected] = potential.evaluate([cell], magmoms=True)
        features = one(cell)
        last = torch.from_numpy(features.atoms[:, -WIDTH - 1 : -1])
        energy = network.energies(last).numpy()
        energy = energy + network.reference[features.numbers - 1]
        mean = float((energy * features.count).sum() / features.count.sum())
        assert mean == pytest.approx(expected.energy, abs=1e-5)
        moments = np.repeat(features.atoms[:, -1], features.count.astype(int))
        np.testing.assert_allclose(np.sort(moments), np.sort(expected.magmoms), atol=1e-5)


def test_classes_count_all_atoms_and_volume_is_that_of_an_atom() -> None:
    features = one(TRICLINIC)
    assert features.count.sum() == 4
    assert features.volume == pytest.approx(abs(np.linalg.det(TRICLINIC.lattice)) / 4)
    assert sorted(features.numbers) == [8, 8, 15, 26]


def test_order_is_kept_and_a_failure_stands_in_its_place() -> None:
    alone = one(TRICLINIC)
    heavy = Cell(np.eye(3) * 4, np.array([96]), np.zeros((1, 3)))
    lonely = Cell(np.eye(3) * 30, np.array([3]), np.zeros((1, 3)))
    found = FrozenChgnet().features([heavy, ZINCBLENDE, lonely, TRICLINIC])
    assert isinstance(found[0], InputError)
    assert isinstance(found[2], InputError)
    assert isinstance(found[1], CrystalFeatures)
    assert isinstance(found[3], CrystalFeatures)
    np.testing.assert_allclose(found[3].atoms, alone.atoms, atol=1e-4)
    assert found[3].bonds is None


def orientation(features: CrystalFeatures) -> np.ndarray:
    """Sum over bonds of f(length, elements) (r r^T - I/3) with some f: (3, 3)."""
    bonds = features.bonds
    assert bonds is not None
    ends = features.numbers[bonds.first] * features.numbers[bonds.second]
    total = (np.cos(bonds.length) * np.sqrt(ends)) @ bonds.orientation
    tensor = np.zeros((3, 3))
    for k, (a, b) in enumerate(COMPONENTS):
        tensor[a, b] = tensor[b, a] = total[k]
    return tensor


def test_orientations_turn_with_the_crystal_and_have_its_symmetry() -> None:
    assert np.abs(orientation(one(ZINCBLENDE, bonds=True))).max() < 1e-3
    turn = Rotation.random(random_state=0).as_matrix()
    turned = TRICLINIC._replace(lattice=TRICLINIC.lattice @ turn.T)
    tensor = orientation(one(TRICLINIC, bonds=True))
    assert abs(np.trace(tensor)) < 1e-3
    assert np.abs(tensor).max() > 1
    np.testing.assert_allclose(
        orientation(one(turned, bonds=True)), turn @ tensor @ turn.T, atol=2e-3
    )


def test_orientations_equal_a_sum_over_all_pairs() -> None:
    found = np.zeros((3, 3))
    cell = TRICLINIC
    cartesian = cell.frac_coords @ cell.lattice
    for shift in np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3) @ cell.lattice:
        for i in range(4):
            for j in range(4):
                vector = cartesian[j] + shift - cartesian[i]
                length = np.linalg.norm(vector)
                if 1e-6 < length < 6:
                    weight = np.cos(length) * np.sqrt(cell.numbers[i] * cell.numbers[j]) / 2
                    found += weight * (np.outer(vector, vector) / length**2 - np.eye(3) / 3)
    np.testing.assert_allclose(orientation(one(cell, bonds=True)), found, atol=2e-3)


def test_batches_number_atoms_and_bonds_through() -> None:
    crystals = [one(ZINCBLENDE, bonds=True), one(TRICLINIC, bonds=True)]
    batch = FeatureBatch.of(crystals)
    assert batch.size == 2
    assert batch.crystal.tolist() == [0, 0, 1, 1, 1, 1]
    second = batch.bond_crystal == 1
    assert batch.bond_first[second].min() >= 2
    assert batch.crystal[batch.bond_second].equal(batch.bond_crystal)
    assert not len(FeatureBatch.of([one(ZINCBLENDE), crystals[1]]).bond_length)
