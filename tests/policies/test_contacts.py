"""Contacts are the crystal's, whatever its size, setting or origin."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.policies import lattice
from nucleate.policies.contacts import N_CONTACTS, find_contacts
from nucleate.policies.element_features import covalent_radii_angstrom
from nucleate.structures.settings import random_setting
from nucleate.structures.wyckoff import WyckoffBatch, encode
from tiny import condition, generator, tiny_policy


def crystals() -> list[Structure]:
    """Every orbit of each has an element of its own."""
    third = 1 / 3
    return [
        Structure(
            [[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]], ["Na", "Cl"], [[0] * 3, [0.5] * 3]
        ),
        Structure(
            Lattice.tetragonal(4.59, 2.96),
            ["Ti", "Ti", "O", "O", "O", "O"],
            [
                [0, 0, 0],
                [0.5, 0.5, 0.5],
                [0.305, 0.305, 0],
                [0.695, 0.695, 0],
                [0.195, 0.805, 0.5],
                [0.805, 0.195, 0.5],
            ],
        ),
        Structure(
            Lattice.cubic(3.9),
            ["Sr", "Ti", "O", "O", "O"],
            [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        Structure(
            Lattice.hexagonal(3.25, 5.2),
            ["Zn", "Zn", "O", "O"],
            [
                [third, 2 * third, 0],
                [2 * third, third, 0.5],
                [third, 2 * third, 0.382],
                [2 * third, third, 0.882],
            ],
        ),
        Structure(
            Lattice.from_parameters(4.1, 5.2, 6.3, 82, 75, 95),
            ["Li", "K", "Cl", "F"],
            [[0, 0, 0], [0.5, 0.1, 0], [0.1, 0.5, 0.5], [0.6, 0.5, 0.4]],
        ),
        Structure(Lattice.cubic(3.35), ["Po"], [[0, 0, 0]]),
    ]


def log_ratios(structure: Structure) -> list[float]:
    """Shortest distance over sum of radii for each pair of elements, in logarithms, ascending."""
    radii = covalent_radii_angstrom()
    shortest: dict[tuple[int, int], float] = {}
    numbers = structure.atomic_numbers
    for i, j, _, d in zip(*structure.get_neighbor_list(15.0), strict=True):
        pair = tuple(sorted((numbers[i], numbers[j])))
        shortest[pair] = min(d, shortest.get(pair, np.inf))
    return sorted(np.log(d / (radii[a] + radii[b])) for (a, b), d in shortest.items())


def test_agree_with_all_neighbours():
    batch, why = encode(crystals())
    assert not any(why)
    parameters = lattice.to_parameters(batch.lattice, batch.n_atoms)
    found = find_contacts(batch, parameters)
    for i, structure in enumerate(crystals()):
        expected = np.array(log_ratios(structure))
        n = min(N_CONTACTS, len(expected))
        assert (found.species[i] > 0).all(1).sum() == n
        relative = np.clip(expected - expected[0], 0, 3)[:n]
        np.testing.assert_allclose(found.features[i, :n, 0], relative, atol=1e-3)
        # the scale at which the tightest contact would be as long as its radii say
        tight = parameters[i, lattice.SCALE] - expected[0]
        assert found.tight[i] == pytest.approx(tight, abs=1e-3)
        radii = covalent_radii_angstrom()[found.species[i, :n]].sum(1)
        np.testing.assert_allclose(found.features[i, :n, 1], np.log(radii), rtol=1e-5)


@pytest.fixture(scope="module")
def drawn() -> WyckoffBatch:
    """Crystals of all space groups."""
    return tiny_policy().sample(500, condition(max_atoms=30), generator(5)).batch


def test_scale_does_not_matter(drawn):
    parameters = lattice.to_parameters(drawn.lattice, drawn.n_atoms)
    other = parameters.copy()
    other[:, lattice.SCALE] += np.random.default_rng(0).normal(size=len(drawn))
    one, two = find_contacts(drawn, parameters), find_contacts(drawn, other)
    assert (one.species == two.species).all()
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.tight, two.tight)


def test_setting_and_origin_do_not_matter(drawn):
    other = random_setting(drawn, np.random.default_rng(1))
    changed = (other.frac_coords != drawn.frac_coords).any((1, 2))
    assert changed.mean() > 0.5
    one, two = (
        find_contacts(b, lattice.to_parameters(b.lattice, b.n_atoms)) for b in (drawn, other)
    )
    apart = one.tight < 1.9  # atoms on one spot have no defined ratio
    assert apart.sum() > 100
    np.testing.assert_allclose(two.tight[apart], one.tight[apart], atol=2e-3)
    np.testing.assert_allclose(two.features[apart, :, 0], one.features[apart, :, 0], atol=1e-2)


def test_order_and_padding(drawn):
    parameters = lattice.to_parameters(drawn.lattice, drawn.n_atoms)
    found = find_contacts(drawn, parameters)
    present = (found.species > 0).all(2)
    expected = np.minimum(drawn.n_sites * (drawn.n_sites + 1) // 2, N_CONTACTS)
    np.testing.assert_array_equal(present.sum(1), expected)
    assert (np.diff(present.astype(int), axis=1) <= 0).all()  # present ones first
    relative = np.where(present, found.features[..., 0], np.inf)
    assert (relative[:, 1:] >= relative[:, :-1]).all() and (relative[:, 0] == 0).all()
    assert (found.features[~present] == 0).all()
    padded = find_contacts(drawn.padded(drawn.wyckoff.shape[1] + 3), parameters)
    np.testing.assert_array_equal(padded.features, found.features)
    few = find_contacts(drawn[7:9], parameters[7:9])
    np.testing.assert_array_equal(few.features, found.features[7:9])
