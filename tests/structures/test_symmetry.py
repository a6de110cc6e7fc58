"""Wyckoff tables against the reference tables, and the algebra that decoding relies on."""

import numpy as np
import pytest

from nucleate.structures.symmetry import (
    TRANSLATION_UNIT,
    crystal_system,
    free_lattice_mask,
    lattice_matrix,
    lattice_parameters,
    letter_name,
    symmetrise_lattice,
    tables,
)

GROUPS = np.arange(1, 231)


def positions():
    t = tables()
    return [(g, w) for g in GROUPS for w in range(1, t.n_letters[g - 1] + 1)]


def test_reference_tables(shared):
    reference = np.load(shared / "fixtures" / "crystalformer" / "tables.npz")
    t = tables()
    np.testing.assert_array_equal(t.multiplicity, reference["mult"])
    np.testing.assert_array_equal(t.n_letters, reference["wmax"])
    np.testing.assert_array_equal(t.dof == 0, reference["dof0"])
    np.testing.assert_array_equal(t.first_rotation.any(-1), reference["fc_mask"])
    exists = t.multiplicity > 0
    first = np.concatenate([t.first_rotation, t.first_translation[..., None]], -1)
    np.testing.assert_allclose(first[exists], reference["op0"][exists], atol=1e-6)


def test_counts():
    t = tables()
    assert (t.multiplicity > 0).sum() == 1731
    assert np.bincount(t.dof[t.multiplicity > 0]).tolist() == [616, 718, 167, 230]
    assert letter_name(0) == "" and letter_name(1) == "a" and letter_name(27) == "A"
    assert np.flatnonzero(t.n_letters == 27).tolist() == [46]


def test_first_operation_is_a_lower_triangular_projection():
    t = tables()
    rotation = t.first_rotation.astype(int)
    np.testing.assert_array_equal(rotation @ rotation, rotation)
    assert not np.triu(rotation, 1).any()
    shift = np.einsum("gwij,gwj->gwi", rotation, t.first_translation)
    np.testing.assert_allclose(shift - np.round(shift), 0, atol=1e-9)


def test_operations_depend_on_free_coordinates_alone():
    t = tables()
    for g, w in positions():
        rotation, _ = t.operations(g, w)
        assert not rotation[:, :, ~t.free[g - 1, w]].any()


def test_orbits_are_closed_under_the_group():
    """Each operation of the group permutes the images of a random point on each position."""
    t = tables()
    rng = np.random.default_rng(0)
    for g, w in positions():
        rotation, translation = t.operations(g, w)
        orbit = rotation @ rng.random(3) + translation
        r, s = t.general_operations(g)
        images = np.einsum("kij,nj->kni", r, orbit) + s[:, None]
        expected = np.sort(integers(orbit))
        found = np.sort(integers(images), axis=1)
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def integers(coords):
    """One integer for each position modulo lattice translations, in steps of 1e-5."""
    steps = np.round(((coords + 1e-9) % 1.0) * 1e5).astype(np.int64)
    return (steps[..., 0] * 100_003 + steps[..., 1]) * 100_003 + steps[..., 2]


def test_settings_are_those_of_moyo():
    moyopy = pytest.importorskip("moyopy")

    def keys(rotations, translations):
        steps = np.round(np.asarray(translations) * TRANSLATION_UNIT).astype(int) % TRANSLATION_UNIT
        return {
            (tuple(np.ravel(r).tolist()), tuple(s.tolist()))
            for r, s in zip(np.asarray(rotations, int), steps, strict=True)
        }

    for g in GROUPS.tolist():
        theirs = moyopy.operations_from_number(g, setting=moyopy.Setting.standard())
        ours = tables().general_operations(g)
        assert keys(*ours) == keys(theirs.rotations, theirs.translations), g


def test_centring_and_primitive_basis():
    t = tables()
    for g in GROUPS.tolist():
        points = t.centring(g)
        assert len(points) == t.centring_order[g - 1]
        assert not points[0].any()
        basis = t.primitive_basis[g - 1]
        assert np.linalg.det(basis) == pytest.approx(1 / len(points))
        coefficients = points @ np.linalg.inv(basis)
        np.testing.assert_allclose(coefficients, np.round(coefficients), atol=1e-9)


def test_crystal_systems():
    edges = [1, 2, 3, 15, 16, 74, 75, 142, 143, 167, 168, 194, 195, 230]
    assert crystal_system(np.array(edges)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    free = free_lattice_mask(np.array([1, 5, 20, 100, 150, 180, 225])).sum(-1)
    assert free.tolist() == [6, 4, 3, 2, 2, 2, 1]


def test_symmetrised_cells_depend_on_free_parameters_alone():
    rng = np.random.default_rng(0)
    lattice = np.column_stack([rng.uniform(3, 9, (230, 3)), rng.uniform(75, 105, (230, 3))])
    other = np.where(free_lattice_mask(GROUPS), lattice, rng.uniform(3, 9, (230, 6)))
    once = symmetrise_lattice(GROUPS, lattice)
    np.testing.assert_array_equal(once, symmetrise_lattice(GROUPS, other))
    np.testing.assert_array_equal(once, symmetrise_lattice(GROUPS, once))


def test_group_operations_are_isometries_of_symmetrised_cells():
    rng = np.random.default_rng(1)
    lattice = np.column_stack([rng.uniform(3, 9, (230, 3)), rng.uniform(75, 105, (230, 3))])
    cells = lattice_matrix(symmetrise_lattice(GROUPS, lattice))
    for g in GROUPS.tolist():
        metric = cells[g - 1] @ cells[g - 1].T
        rotation, _ = tables().general_operations(g)
        turned = np.swapaxes(rotation, 1, 2) @ metric @ rotation
        np.testing.assert_allclose(turned, np.broadcast_to(metric, turned.shape), atol=1e-9)


def test_lattice_matrix_and_parameters_are_inverse():
    from pymatgen.core import Lattice

    rng = np.random.default_rng(2)
    lattice = np.column_stack([rng.uniform(3, 9, (50, 3)), rng.uniform(75, 105, (50, 3))])
    matrices = lattice_matrix(lattice)
    np.testing.assert_allclose(lattice_parameters(matrices), lattice, atol=1e-9)
    for parameters, matrix in zip(lattice, matrices, strict=True):
        np.testing.assert_allclose(Lattice.from_parameters(*parameters).matrix, matrix, atol=1e-9)
    assert np.isnan(lattice_matrix(np.array([3.0, 3, 3, 30, 30, 170]))).any()


def test_tables_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        tables().multiplicity[0, 0] = 1
