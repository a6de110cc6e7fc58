"""The verdict equals pymatgen's, pair by pair, and the filters never refuse a match."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher

from nucleate.structures.formulas import composition_key
from nucleate.structures.io import iter_raw
from nucleate.structures.matching import Candidates, same_crystal, same_crystals
from nucleate.structures.parsing import parse_cell, to_structure
from nucleate.structures.reduction import reduce_cell, reduce_cells


def random_cell(rng, n_atoms=4, elements=(3, 8)):
    lattice = np.diag(rng.uniform(2.5, 4.5, 3)) + rng.normal(scale=0.3, size=(3, 3))
    numbers = np.array([elements[i % len(elements)] for i in range(n_atoms)])
    return lattice, numbers, rng.uniform(size=(n_atoms, 3))


def disturbed(rng, cell, amount):
    lattice, numbers, frac = cell
    order = rng.permutation(len(numbers))
    strain = np.eye(3) + rng.normal(scale=amount, size=(3, 3))
    moved = frac + rng.normal(scale=amount, size=frac.shape) + rng.uniform(size=3)
    return lattice @ strain * rng.uniform(0.8, 1.2), numbers[order], moved[order]


def may_match(stored, new):
    candidates = Candidates()
    candidates.append(stored)
    return candidates.may_match(new).tolist() == [0]


def verdicts(first, second):
    """Ours and pymatgen's."""
    matcher = StructureMatcher()
    theirs = matcher.fit(to_structure(first), to_structure(second))
    stored, new = reduce_cell(first), reduce_cell(second)
    ours = same_crystal(stored, new)
    assert not theirs or may_match(stored, new)
    return ours, bool(theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.06, 0.12]), st.integers(1, 6))
def test_disturbed_copies(seed, amount, n_atoms):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, n_atoms)
    ours, theirs = verdicts(cell, disturbed(rng, cell, amount))
    assert ours == theirs
    if amount == 0.0:
        assert ours


def test_many_pairs_at_once():
    """Pairs of all sizes, strained, moved and doubled, get the verdicts that they get alone."""
    rng = np.random.default_rng(1)
    matcher, pairs, wanted, halved = StructureMatcher(), [], [], 0
    for trial in range(120):
        lattice, numbers, frac = random_cell(rng, int(rng.integers(1, 7)), (3, 8, 8))
        if trial % 3 == 0:  # nearly two primitive cells in one
            shift = rng.normal(scale=0.02, size=frac.shape) + np.array([0.5, 0, 0])
            lattice, numbers = lattice * [[2], [1], [1]], np.tile(numbers, 2)
            frac = np.concatenate([frac * [0.5, 1, 1], frac * [0.5, 1, 1] + shift])
        one = lattice, numbers, frac
        two = disturbed(rng, one, rng.choice([0.0, 0.003, 0.01, 0.03, 0.1]))
        wanted.append(bool(matcher.fit(to_structure(one), to_structure(two))))
        pairs.append(tuple(reduce_cells([one, two])))
        halved += len(pairs[-1][0].numbers) < len(numbers)
    assert same_crystals(pairs).tolist() == wanted
    assert 20 < sum(wanted) < 110 and halved > 10


def test_sites_that_vie_for_partners():
    """Atoms so close that the nearest partners are not the best assignment."""
    rng = np.random.default_rng(4)
    matcher, pairs, wanted = StructureMatcher(), [], []
    for trial in range(90):
        numbers = np.array(([3, 3], [8, 8], [3, 8])[trial % 3] + [8] * 5)
        lattice = np.eye(3) * 4.0 + rng.normal(scale=0.2, size=(3, 3))
        frac = rng.uniform(size=(7, 3))
        moved = frac + rng.normal(scale=rng.choice([0.05, 0.07, 0.1]), size=frac.shape)
        one, two = (lattice, numbers, frac), (lattice, numbers, moved)
        wanted.append(bool(matcher.fit(to_structure(one), to_structure(two))))
        pairs.append(tuple(reduce_cells([one, two])))
    assert same_crystals(pairs).tolist() == wanted
    assert 20 < sum(wanted) < 70


def test_supercell_and_other_setting_are_the_same_crystal():
    rng = np.random.default_rng(0)
    cell = random_cell(rng)
    bigger = to_structure(cell)
    bigger.make_supercell([[2, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert same_crystal(
        reduce_cell(cell),
        reduce_cell((bigger.lattice.matrix, np.array(bigger.atomic_numbers), bigger.frac_coords)),
    )


def test_given_polymorphs(shared):
    """All ordered pairs of the formulas with most polymorphs among real crystals."""
    families = {}
    for raw in iter_raw(shared / "data/crystals/test.parquet"):
        cell, _ = parse_cell(raw)
        families.setdefault(composition_key(cell[1]), []).append(cell)
    largest = sorted(families.values(), key=len, reverse=True)[:8]
    matcher, n_pairs, n_same = StructureMatcher(), 0, 0
    for family in largest:
        family = family[:7]
        ours = [reduce_cell(cell) for cell in family]
        theirs = [to_structure((c.matrix, c.numbers, c.frac_coords)) for c in ours]
        for i, j in permutations(range(len(family)), 2):
            wanted = matcher.fit(theirs[i], theirs[j], skip_structure_reduction=True)
            assert same_crystal(ours[i], ours[j]) == wanted
            assert not wanted or may_match(ours[i], ours[j])
            n_pairs, n_same = n_pairs + 1, n_same + wanted
    assert n_pairs > 200 and n_same > 0


def test_unequal_numbers_of_sites_never_match():
    rng = np.random.default_rng(1)
    small, large = random_cell(rng, 2), random_cell(rng, 4)
    assert composition_key(small[1]) == composition_key(large[1])
    for first, second in ((small, large), (large, small)):
        assert verdicts(first, second) == (False, False)


def test_degenerate_cells_do_not_raise():
    rng = np.random.default_rng(3)
    stored = reduce_cell(random_cell(rng))
    numbers, frac = np.array([3, 8]), rng.uniform(size=(2, 3))
    for lattice in (
        [[3.0, 0, 0], [0, 3, 0], [3, 3, 1e-9]],
        [[3.0, 0, 0], [0, 3, 0], [3, 3, 0]],
        [[150.0, 0, 0], [0, 150, 0], [0, 0, 0.9]],
        [[np.nan, 0, 0], [0, 3, 0], [0, 0, 3]],
    ):
        new = reduce_cell((np.array(lattice), numbers, frac))
        assert new is None or not (may_match(stored, new) and same_crystal(stored, new))
