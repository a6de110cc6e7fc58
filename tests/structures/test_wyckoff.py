"""Encoding and decoding of crystals as Wyckoff tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from nucleate.structures.symmetry import tables
from nucleate.structures.wyckoff import (
    WyckoffBatch,
    decode,
    decode_arrays,
    encode,
    encode_cells,
    undecodable,
)

MATCHER = StructureMatcher(primitive_cell=False, ltol=1e-3, stol=1e-3, angle_tol=0.1)


def rock_salt(a=5.64):
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def same(a, b):
    """Equal crystals, compared in cells reduced by the same symmetry search."""
    return MATCHER.fit(a, b)


@pytest.mark.parametrize("space_group", range(1, 231))
def test_round_trip_in_every_group(random_crystal, space_group):
    rng = np.random.default_rng(space_group)
    batch = random_crystal(space_group, rng)
    (original,), reasons = decode(batch)
    assert reasons == [""]
    again, reasons = encode([original], symprec=1e-3)
    assert reasons == [""]
    (decoded,), _ = decode(again)
    assert len(decoded) == len(original)
    assert same(original, decoded)
    order = (
        len(tables().general_operations(space_group)[0]) / tables().centring_order[space_group - 1]
    )
    found = int(again.space_group[0])
    found_order = len(tables().general_operations(found)[0]) / tables().centring_order[found - 1]
    assert found == space_group or found_order >= order


def test_tokens_lie_on_their_positions_in_order(random_crystal):
    rng = np.random.default_rng(5)
    batch = WyckoffBatch.concatenate([random_crystal(g, rng) for g in range(1, 231, 7)])
    batch, _ = encode(decode(batch)[0])
    t = tables()
    for i in range(len(batch)):
        g, n = int(batch.space_group[i]) - 1, int(batch.n_sites[i])
        w, x = batch.wyckoff[i, :n], batch.frac_coords[i, :n].astype(float)
        image = np.einsum("nij,nj->ni", t.first_rotation[g, w], x) + t.first_translation[g, w]
        assert np.abs(image - x - np.round(image - x)).max() < 1e-5
        assert (x >= 0).all() and (x < 1).all()
        rows = [(int(a), *b) for a, b in zip(w, x.tolist(), strict=True)]
        assert rows == sorted(rows)
        assert not batch.wyckoff[i, n:].any() and not batch.frac_coords[i, n:].any()


def test_published_tokens_are_reproduced(shared):
    """Groups, letters, species in order, and coordinates to 1e-3, without any equivalence."""
    z = np.load(shared / "fixtures" / "crystalformer" / "mini_tokens.npz")
    batch = WyckoffBatch(
        z["G"].astype(np.int16),
        z["W"].astype(np.int8),
        z["A"].astype(np.int8),
        z["XYZ"].astype(np.float32) % 1,
        np.zeros((len(z["G"]), 6), np.float32),
    )
    batch.lattice[:, :3] = z["L"][:, :3] * batch.n_atoms[:, None] ** (1 / 3)
    batch.lattice[:, 3:] = np.degrees(z["L"][:, 3:])
    structures, reasons = decode(batch)
    assert not any(reasons)
    again, reasons = encode(structures)
    assert not any(reasons)
    again = again.padded(batch.wyckoff.shape[1])
    np.testing.assert_array_equal(again.space_group, batch.space_group)
    np.testing.assert_array_equal(again.wyckoff, batch.wyckoff)
    np.testing.assert_array_equal(again.species, batch.species)
    apart = again.frac_coords - batch.frac_coords
    assert np.abs(apart - np.round(apart)).max() < 1e-3
    np.testing.assert_allclose(again.lattice, batch.lattice, atol=0.02)


def test_real_crystals_survive(shared):
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data" / "crystals" / "test.parquet").slice(0, 150).to_pydict()
    structures = [
        Structure(np.reshape(lattice, (3, 3)), numbers, np.reshape(coords, (-1, 3)))
        for lattice, numbers, coords in zip(
            table["lattice"], table["numbers"], table["frac_coords"], strict=True
        )
    ]
    batch, reasons = encode(structures)
    assert not any(reasons)
    np.testing.assert_array_equal(batch.space_group, table["sg_001"])
    np.testing.assert_array_equal(batch.n_sites, table["n_wyckoff_001"])
    matcher = StructureMatcher()
    fits = [matcher.fit(a, b) for a, b in zip(structures, decode(batch)[0], strict=True)]
    assert np.mean(fits) >= 0.99


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    space_group=st.integers(1, 230),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 1e-6]),
)
def test_tokens_do_not_depend_on_atom_order_or_rotation(random_crystal, space_group, seed, noise):
    rng = np.random.default_rng(seed)
    batch = random_crystal(space_group, rng)
    ((lattice, numbers, coords),), _ = decode_arrays(batch)
    order = rng.permutation(len(numbers))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    jitter = rng.uniform(-noise, noise, coords.shape)
    moved = (lattice @ turn, numbers[order], (coords + jitter)[order] + rng.integers(-2, 3, 3))
    (a, b), _ = zip(*(encode_cells([c]) for c in ((lattice, numbers, coords), moved)), strict=True)
    assert a.space_group == b.space_group
    assert a.composition(0) == b.composition(0)
    np.testing.assert_allclose(np.sort(a.lattice), np.sort(b.lattice), atol=0.05)


def test_primitive_and_conventional_cells_agree():
    batch, _ = encode([rock_salt()])
    (small,), _ = decode(batch)
    (large,), _ = decode(batch, primitive=False)
    assert (len(small), len(large)) == (2, 8)
    assert small.density == pytest.approx(large.density, rel=1e-6)
    assert StructureMatcher().fit(small, large)


def test_supercell_is_reduced():
    cell = rock_salt()
    cell.make_supercell([2, 1, 1])
    batch, _ = encode([cell])
    assert batch.space_group.tolist() == [225]
    assert batch.wyckoff.tolist() == [[1, 2]]
    assert batch.formula(0) == "NaCl"
    assert batch.n_atoms.tolist() == [8]
    assert batch.composition(0) == {11: 4, 17: 4}


def test_one_bad_structure_keeps_the_batch():
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    doubled = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.0001, 0, 1]])
    empty = Structure(Lattice.cubic(4), [], [])
    infinite = Structure(Lattice.cubic(4), ["Na"], [[0, 0, np.nan]])
    flat = Structure(Lattice(np.diag([4, 4, 1e-9])), ["Na"], [[0, 0, 0]])
    thin = Structure(Lattice(np.diag([40, 40, 0.01])), ["Na"], [[0, 0, 0]])
    dummy = Structure(Lattice.cubic(4), ["Xa"], [[0, 0, 0]])
    bad = [disordered, doubled, empty, infinite, flat, thin, dummy]
    batch, reasons = encode([rock_salt(), *bad, rock_salt()])
    assert batch.space_group.tolist() == [225, *[0] * len(bad), 225]
    assert reasons[0] == reasons[-1] == ""
    words = ["disordered", "apart", "no atoms", "finite", "volume", "translation", "number"]
    for reason, word in zip(reasons[1:-1], words, strict=True):
        assert word in reason
    structures, reasons = decode(batch)
    assert [s is None for s in structures] == [False, *[True] * len(bad), False]
    assert all("space group 0" in r for r in reasons[1:-1])


def test_nothing_in_nothing_out():
    batch, reasons = encode([])
    assert (len(batch), reasons) == (0, [])
    assert decode(batch) == ([], [])
    assert len(WyckoffBatch.concatenate([])) == 0


@pytest.mark.parametrize(
    ("field", "index", "value", "word"),
    [
        ("space_group", 0, 231, "space group 231"),
        ("wyckoff", (0, 0), 0, "no site"),
        ("wyckoff", (0, 0), 13, "letter"),
        ("wyckoff", (0, 0), -1, "letter"),
        ("species", (0, 0), 0, "element"),
        ("frac_coords", (0, 0, 0), np.nan, "coordinate"),
        ("lattice", (0, 0), -1.0, "length"),
        ("lattice", (0, 0), np.inf, "length"),
    ],
)
def test_undecodable_tokens_say_why(field, index, value, word):
    batch = WyckoffBatch.empty(1, 2)
    batch.space_group[0], batch.wyckoff[0, 0], batch.species[0, 0] = 225, 1, 11
    batch.lattice[0] = [5, 5, 5, 90, 90, 90]
    assert undecodable(batch) == [""]
    getattr(batch, field)[index] = value
    assert word in undecodable(batch)[0]
    assert decode(batch)[0] == [None]


def test_fixed_position_holds_one_orbit():
    batch = WyckoffBatch.empty(2, 2)
    batch.space_group[:] = [225, 1]
    batch.wyckoff[:] = 1
    batch.species[:] = 11
    batch.lattice[:] = [5, 5, 5, 90, 90, 90]
    batch.frac_coords[1, 1] = 0.5
    assert "two orbits" in undecodable(batch)[0]
    assert undecodable(batch)[1] == ""


def test_impossible_angles(random_crystal):
    batch = random_crystal(1, np.random.default_rng(0))
    batch.lattice[0, 3:] = [30, 30, 170]
    assert "angles" in undecodable(batch)[0]


def test_batch_operations(random_crystal):
    rng = np.random.default_rng(0)
    batch = WyckoffBatch.concatenate([random_crystal(g, rng) for g in (1, 62, 225)])
    assert len(batch[1:]) == 2
    assert len(batch[1]) == 1
    assert batch[np.array([True, False, True])].space_group.tolist() == [1, 225]
    wider = batch.padded(9)
    assert [wider.digest(i) for i in range(3)] == [batch.digest(i) for i in range(3)]
    assert len({batch.digest(i) for i in range(3)}) == 3
    np.testing.assert_array_equal(wider.padded(2).wyckoff, batch.wyckoff)
    np.testing.assert_array_equal(wider.n_atoms, batch.n_atoms)
    with pytest.raises(ValueError, match="sites don't fit"):
        batch.padded(1)
    with pytest.raises(ValueError, match="species has shape"):
        WyckoffBatch(
            batch.space_group, batch.wyckoff, wider.species, batch.frac_coords, batch.lattice
        )
