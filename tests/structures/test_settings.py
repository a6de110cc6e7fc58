"""Equivalent descriptions of one crystal."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher

from nucleate.structures.settings import canonical_setting, normalizers, random_setting
from nucleate.structures.symmetry import TRANSLATION_UNIT, tables
from nucleate.structures.wyckoff import WyckoffBatch, decode, decode_arrays, encode_cells

MATCHER = StructureMatcher(primitive_cell=False, ltol=1e-3, stol=1e-3, angle_tol=0.1)


def assert_same_tokens(a, b, tolerance=1e-3):
    np.testing.assert_array_equal(a.space_group, b.space_group)
    np.testing.assert_array_equal(a.wyckoff, b.wyckoff)
    np.testing.assert_array_equal(a.species, b.species)
    apart = a.frac_coords - b.frac_coords
    assert np.abs(apart - np.round(apart)).max(initial=0) < tolerance
    np.testing.assert_allclose(a.lattice, b.lattice, atol=tolerance)


def test_maps_carry_each_group_onto_itself():
    n = normalizers()
    for g in range(1, 231):
        rotations, translations = tables().general_operations(g)
        group = {
            (r.tobytes(), *(np.round(t * TRANSLATION_UNIT).astype(int) % TRANSLATION_UNIT).tolist())
            for r, t in zip(rotations.astype(int), translations, strict=True)
        }
        for m in range(n.first[g - 1], n.first[g]):
            p, shift = n.rotation[m].astype(int), n.translation[m] / TRANSLATION_UNIT
            image_r = p @ rotations @ np.round(np.linalg.inv(p)).astype(int)
            image_t = translations @ p.T + shift - image_r @ shift
            steps = np.round(image_t * TRANSLATION_UNIT).astype(int) % TRANSLATION_UNIT
            images = {(r.tobytes(), *t.tolist()) for r, t in zip(image_r, steps, strict=True)}
            assert images == group, (g, m)


@pytest.mark.parametrize(
    ("space_group", "index"),
    # International Tables A, tables 3.5.2.3 to 3.5.2.5: cosets of the Euclidean normaliser, its
    # most symmetric metric for orthorhombic groups
    [
        (2, 8),
        (14, 8),
        (16, 96),
        (19, 96),
        (47, 48),
        (62, 8),
        (123, 4),
        (139, 2),
        (147, 8),
        (166, 2),
        (191, 2),
        (194, 2),
        (198, 8),
        (216, 8),
        (221, 2),
        (225, 2),
        (227, 2),
        (229, 1),
    ],
)
def test_number_of_maps(space_group, index):
    assert normalizers().count(space_group) == index


def test_free_origins_are_those_of_the_polar_groups():
    free = normalizers().free_origin.sum(1)
    polar = [
        1,
        *range(3, 10),
        *range(25, 47),
        *range(75, 81),
        *range(99, 111),
        *range(143, 147),
        *range(156, 162),
        *range(168, 174),
        *range(183, 187),
    ]
    assert (np.flatnonzero(free) + 1).tolist() == polar
    assert free[[0, 2, 5, 24]].tolist() == [3, 1, 2, 1]


@pytest.mark.parametrize("space_group", range(1, 231))
def test_settings_describe_the_same_crystal(random_crystal, space_group):
    rng = np.random.default_rng(space_group)
    batch = random_crystal(space_group, rng)
    drawn = random_setting(batch, rng)
    canonical = canonical_setting(batch)
    (structure, a, b), reasons = decode(WyckoffBatch.concatenate([batch, drawn, canonical]))
    assert reasons == ["", "", ""]
    assert MATCHER.fit(structure, a)
    assert MATCHER.fit(structure, b)
    assert_same_tokens(canonical, canonical_setting(drawn))
    assert_same_tokens(canonical, canonical_setting(canonical), 2e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(space_group=st.integers(1, 230), seed=st.integers(0, 2**32 - 1))
def test_canonical_tokens_do_not_depend_on_cell_or_origin(random_crystal, space_group, seed):
    rng = np.random.default_rng(seed)
    batch = random_crystal(space_group, rng)
    ((lattice, numbers, coords),), _ = decode_arrays(batch)
    order = rng.permutation(len(numbers))
    basis = np.eye(3, dtype=int)
    for i, j in itertools.permutations(range(3), 2):
        basis[i] += rng.integers(-1, 2) * basis[j]
    moved = (basis @ lattice, numbers, (coords + rng.random(3)) @ np.linalg.inv(basis))
    moved = (moved[0], moved[1][order], moved[2][order])
    both, reasons = encode_cells([(lattice, numbers, coords), moved])
    assert reasons == ["", ""]
    both = canonical_setting(both)
    assert_same_tokens(both[:1], both[1:], 3e-3)


def test_random_setting_reaches_both_origins_of_rock_salt():
    batch = WyckoffBatch.empty(1, 2)
    batch.space_group[0] = 225
    batch.wyckoff[0], batch.species[0] = [1, 2], [11, 17]
    batch.frac_coords[0, 1] = 0.5
    batch.lattice[0] = [5.64, 5.64, 5.64, 90, 90, 90]
    rng = np.random.default_rng(0)
    drawn = {tuple(random_setting(batch, rng).species[0].tolist()) for _ in range(30)}
    assert drawn == {(11, 17), (17, 11)}
    assert canonical_setting(batch).species[0].tolist() == [11, 17]


def test_axes_move_with_their_lengths():
    """One atom in group 47: the canonical cell has ascending lengths."""
    batch = WyckoffBatch.empty(1, 1)
    batch.space_group[0], batch.wyckoff[0], batch.species[0] = 47, 8, 14
    batch.frac_coords[0, 0] = 0.5
    batch.lattice[0] = [5, 3, 4, 90, 90, 90]
    canonical = canonical_setting(batch)
    assert canonical.lattice[0].tolist() == [3, 4, 5, 90, 90, 90]
    assert canonical.wyckoff[0].tolist() == [1]


def handedness(batch):
    """Sign of a pseudoscalar of the first atom's surroundings: it flips under reflections only."""
    ((lattice, _, coords),), _ = decode_arrays(batch, primitive=False)
    images = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    vectors = ((coords[None] + images[:, None] - coords[0]) @ lattice).reshape(-1, 3)
    squared = (vectors**2).sum(1)
    moments = [np.exp(-squared / width) @ vectors for width in (3, 5, 9)]
    return int(np.sign(np.linalg.det(moments)))


def test_handedness_is_kept_on_request():
    batch = WyckoffBatch.empty(1, 1)
    batch.space_group[0], batch.wyckoff[0], batch.species[0] = 19, 1, 14
    batch.frac_coords[0, 0] = [0.11, 0.17, 0.29]
    batch.lattice[0] = [5, 6, 8, 90, 90, 90]
    rng = np.random.default_rng(1)
    kept = {handedness(random_setting(batch, rng, keep_handedness=True)) for _ in range(25)}
    assert kept == {handedness(batch)}
    assert {handedness(random_setting(batch, rng)) for _ in range(25)} == {-1, 1}
    assert handedness(canonical_setting(batch, keep_handedness=True)) == handedness(batch)


def test_free_origin_of_canonical_tokens_is_at_a_site(random_crystal):
    rng = np.random.default_rng(3)
    for g in (1, 4, 8, 33, 76, 145, 160, 186):
        canonical = canonical_setting(random_crystal(g, rng))
        free = normalizers().free_origin[g - 1]
        coords = canonical.frac_coords[0][canonical.wyckoff[0] > 0][:, free]
        assert (
            (np.abs(coords - np.round(coords * TRANSLATION_UNIT) / TRANSLATION_UNIT) < 1e-6)
            .all(axis=1)
            .any()
        )


def test_rows_without_a_crystal_stay(random_crystal):
    rng = np.random.default_rng(0)
    batch = WyckoffBatch.concatenate(
        [WyckoffBatch.empty(1, 3), random_crystal(62, rng), WyckoffBatch.empty(1, 1)]
    )
    for result in (canonical_setting(batch), random_setting(batch, rng)):
        assert result.space_group.tolist() == [0, 62, 0]
        assert result.wyckoff.shape == batch.wyckoff.shape
        assert not result.wyckoff[[0, 2]].any()
    assert len(canonical_setting(batch[:0])) == len(random_setting(batch[:0], rng)) == 0
    assert not canonical_setting(batch[:1]).space_group.any()
