"""A head with random weights: invariant values, tensors that turn, symmetry by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from nucleate.physics.cells import Cell
from nucleate.predictors.features import CrystalFeatures, FeatureBatch
from nucleate.predictors.head import ELEMENT_PROPERTIES, Head, HeadConfig, element_properties
from nucleate.predictors.predictor import Predictor, Standardisation, frozen_chgnet
from nucleate.predictors.tables import Target

RUTILE = Cell(
    np.diag([4.6, 4.6, 2.96]),
    np.array([22, 22, 8, 8, 8, 8]),
    np.array(
        [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.305, 0.305, 0],
            [0.695, 0.695, 0],
            [0.195, 0.805, 0.5],
            [0.805, 0.195, 0.5],
        ]
    ),
)
PEROVSKITE = Cell(
    np.eye(3) * 3.9,
    np.array([38, 22, 8, 8, 8]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
)
MONOCLINIC = RUTILE._replace(
    lattice=np.array([[4.6, 0, 0.9], [0, 4.9, 0], [0, 0, 2.96]]),
    frac_coords=RUTILE.frac_coords + np.random.default_rng(0).normal(0, 0.02, (6, 3)),
)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    head = Head(HeadConfig(tensor=True, width=16, embedding=4)).eval()
    cells = [RUTILE, PEROVSKITE, MONOCLINIC]
    features = frozen_chgnet().features(cells, bonds=True)
    assert all(isinstance(f, CrystalFeatures) for f in features)
    head.standardise(FeatureBatch.of(features))
    target = Target(name="epsilon", kind="tensor", columns=("epsilon",))
    seen = dict.fromkeys((8, 22, 38), 100)
    return Predictor(target, [head], Standardisation(10.0, 3.0, 3.0), seen, {})


def tensor_of(predictor: Predictor, cell: Cell) -> np.ndarray:
    [found] = predictor.predict([cell], tensor=True)
    assert np.linalg.eigvalsh(found.tensor).mean() == pytest.approx(found.value, abs=1e-5)
    return found.tensor


def test_a_tensor_turns_with_the_crystal(predictor: Predictor) -> None:
    tensor = tensor_of(predictor, MONOCLINIC)
    assert np.abs(tensor - np.eye(3) * np.trace(tensor) / 3).max() > 0.01
    for seed in range(3):
        turn = Rotation.random(random_state=seed).as_matrix()
        if seed == 2:
            turn = -turn  # an inversion as well
        turned = MONOCLINIC._replace(lattice=MONOCLINIC.lattice @ turn.T)
        np.testing.assert_allclose(tensor_of(predictor, turned), turn @ tensor @ turn.T, atol=2e-4)


def test_a_tensor_has_the_symmetry_of_the_crystal(predictor: Predictor) -> None:
    cubic = tensor_of(predictor, PEROVSKITE)
    np.testing.assert_allclose(cubic, np.eye(3) * cubic[0, 0], atol=1e-4)
    tetragonal = tensor_of(predictor, RUTILE)
    np.testing.assert_allclose(np.diag(np.diag(tetragonal)), tetragonal, atol=1e-4)
    assert tetragonal[0, 0] == pytest.approx(tetragonal[1, 1], abs=1e-4)
    assert abs(tetragonal[2, 2] - tetragonal[0, 0]) > 1e-3


def test_a_supercell_is_the_same_crystal(predictor: Predictor) -> None:
    double = Cell(
        MONOCLINIC.lattice * np.array([[1], [2], [1]]),
        np.tile(MONOCLINIC.numbers, 2),
        np.concatenate(
            [(MONOCLINIC.frac_coords + np.array([0, k, 0])) / [1, 2, 1] for k in (0, 1)]
        ),
    )
    np.testing.assert_allclose(
        tensor_of(predictor, double), tensor_of(predictor, MONOCLINIC), atol=2e-4
    )


def test_neighbours_in_a_batch_change_nothing(predictor: Predictor) -> None:
    cells = [PEROVSKITE, MONOCLINIC, RUTILE, MONOCLINIC]
    for cell, found in zip(cells, predictor.predict(cells, tensor=True), strict=True):
        np.testing.assert_allclose(found.tensor, tensor_of(predictor, cell), atol=2e-4)


def test_element_properties_are_standardised_and_ordered() -> None:
    table = element_properties()
    assert np.isfinite(table).all()
    electronegativity = table[:, ELEMENT_PROPERTIES.index("X")]
    assert electronegativity[9] > electronegativity[8] > electronegativity[14]
    assert abs(table[1:].mean()) < 0.05
    assert not table[0].any()
