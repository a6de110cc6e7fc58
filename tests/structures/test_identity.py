"""First fit is exactly the naive one, in one go, in batches, and after a restart."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError
from nucleate.structures.identity import ReferenceSet, UniqueFilter, unique
from nucleate.structures.io import iter_raw
from nucleate.structures.parsing import parse_cell, to_structure
from nucleate.structures.writing import write_cifs


@pytest.fixture(scope="module")
def cells() -> list:
    """130 crystals of 6 formulas with several prototypes, disturbed by more and more."""
    rng = np.random.default_rng(7)
    made = []
    for first, second in ((11, 17), (19, 17), (12, 8)):
        for prototype in range(4):
            a = rng.uniform(3.5, 4.5)
            base = {
                0: (np.eye(3) * a, [0, 1], [[0, 0, 0], [0.5, 0.5, 0.5]]),
                1: ((np.ones((3, 3)) - np.eye(3)) * a * 0.65, [0, 1], [[0, 0, 0], [0.5] * 3]),
                2: ((np.ones((3, 3)) - np.eye(3)) * a * 0.65, [0, 1], [[0, 0, 0], [0.25] * 3]),
                3: (
                    np.diag([a, a, 1.3 * a]),
                    [0, 1, 1],
                    [[0, 0, 0], [0.5, 0.5, 0.3], [0.5, 0, 0.7]],
                ),
            }[prototype]
            numbers = np.array([(first, second)[i] for i in base[1]])
            for copy in range(11):
                strain = np.eye(3) + rng.normal(scale=0.02 * (copy % 5), size=(3, 3))
                moved = np.array(base[2]) + rng.normal(scale=0.01 * copy, size=(len(numbers), 3))
                made.append((base[0] @ strain, numbers, moved))
    order = rng.permutation(len(made))
    return [made[i] for i in order] + [made[order[0]]]


def naive(cells):
    """Representative of each by pymatgen, first fit, nothing clever."""
    matcher, found, kinds = StructureMatcher(), [], []
    for row, cell in enumerate(cells):
        structure = to_structure(cell)
        group = next((g for g, known in kinds if matcher.fit(known, structure)), row)
        if group == row:
            kinds.append((row, structure))
        found.append(group)
    return np.array(found)


@pytest.fixture(scope="module")
def expected(cells):
    return naive(cells)


def test_equal_to_naive_first_fit(cells, expected):
    first, group = unique(cells)
    assert group.tolist() == expected.tolist()
    assert first.tolist() == [g == i for i, g in enumerate(expected)]
    assert 6 < first.sum() < len(cells) - 6  # the case is not trivial


def test_batches_and_restart_change_nothing(cells, expected):
    seen, groups = UniqueFilter(), []
    for start in range(0, len(cells), 17):
        _, group = seen.add(cells[start : start + 17])
        groups += group.tolist()
        seen = UniqueFilter.restore(seen.state())
    assert groups == expected.tolist()
    assert seen.n_seen == len(cells) and len(seen) == len(set(groups))


def test_known_crystals_may_be_given_twice(cells):
    twice = [cells[0], cells[0], *cells[1:20]]
    known, match = ReferenceSet.from_structures(twice).is_known(cells[:20])
    assert known.all() and match[0] == "0"


def test_missing_crystals_are_neither_first_nor_known(cells):
    first, group = unique([None, cells[0], None, cells[0]])
    assert first.tolist() == [False, True, False, False]
    assert group.tolist() == [-1, 1, -1, 1]
    known, match = ReferenceSet.from_structures(cells[:1]).is_known([None, cells[0]])
    assert known.tolist() == [False, True] and match == [None, "0"]


def test_disordered_crystal_is_no_crystal():
    mixed = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Co": 0.5}], [[0, 0, 0]])
    assert unique([mixed])[1].tolist() == [-1]


def test_known_is_what_naive_matching_finds(cells, tmp_path):
    stored, new = cells[:60], cells[60:]
    names = [f"known-{i}" for i in range(len(stored))]
    matcher = StructureMatcher()
    fits = [
        {
            name
            for name, cell in zip(names, stored, strict=True)
            if matcher.fit(to_structure(cell), to_structure(other))
        }
        for other in new
    ]
    reference = ReferenceSet.from_structures([to_structure(c) for c in stored], names)
    reference.save(tmp_path / "known.npz")
    for source in (reference, ReferenceSet.load(tmp_path / "known.npz")):
        known, match = source.is_known(new)
        assert known.tolist() == [bool(f) for f in fits]
        assert all(m in f for m, f in zip(match, fits, strict=True) if m is not None)
        assert len(source) == 60
    assert 0 < sum(known) < len(new)


def test_known_formula(cells):
    reference = ReferenceSet.from_structures(cells)
    other = (np.eye(3) * 4, np.array([3, 9]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert reference.known_formula([cells[0], other, None]).tolist() == [True, False, False]
    assert reference.n_formulas == 6


def test_from_file_and_from_dataset(cells, tmp_path):
    from nucleate.structures.datasets import TokenDataset
    from nucleate.structures.preparation import prepare

    structures = [to_structure(c) for c in cells[:8]]
    write_cifs(structures, tmp_path / "cif", [f"c{i}" for i in range(8)])
    from_file = ReferenceSet.from_file(tmp_path / "cif")
    prepare(tmp_path / "cif", tmp_path / "tokens")
    from_tokens = ReferenceSet.from_dataset(TokenDataset.open(tmp_path / "tokens"))
    assert from_file.source == "8 crystals of cif"
    assert from_tokens.source == "8 crystals of tokens"
    for reference in (from_file, from_tokens):
        known, match = reference.is_known(structures)
        assert known.all() and all(name.endswith(".cif") for name in match)
    with pytest.raises(InputError, match="prepared tokens"):
        from_tokens.save(tmp_path / "x.npz")


def test_damaged_file(tmp_path, cells):
    path = tmp_path / "x.npz"
    ReferenceSet.from_structures(cells).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"x\.npz"):
        ReferenceSet.load(path)
    with pytest.raises(InputError):
        ReferenceSet.load(tmp_path / "absent.npz")


def test_given_crystals_are_all_different(shared):
    """The given crystals were made unique by the same rule, MP rows within one space group."""
    cells = [parse_cell(raw)[0] for raw in iter_raw(shared / "data/crystals/test.parquet")][:1500]
    first, _ = unique(cells)
    assert first.mean() > 0.97
