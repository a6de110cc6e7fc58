"""Random crystals for the tests of this folder."""

import numpy as np
import pytest

from nucleate.structures.symmetry import symmetrise_lattice, tables
from nucleate.structures.wyckoff import WyckoffBatch


def _random_crystal(space_group, rng, max_atoms=100):
    """One crystal whose sites are dense enough to have exactly this group or a supergroup.

    Two positions are occupied by different elements, the one with most free coordinates among
    them; coordinates stay away from special values, and the volume is 20 Å^3 an atom.
    """
    t = tables()
    g = space_group - 1
    n = int(t.n_letters[g])
    letters = [n]
    others = [w for w in range(1, n) if t.multiplicity[g, w] <= max_atoms]
    if others:
        letters = sorted([n, int(rng.choice(others))])
    batch = WyckoffBatch.empty(1, len(letters))
    batch.space_group[0] = space_group
    batch.species[0] = rng.choice([3, 8, 14, 22, 38], len(letters), replace=False)
    for slot, w in enumerate(letters):
        batch.wyckoff[0, slot] = w
        first_r, first_t = t.first_rotation[g, w], t.first_translation[g, w]
        x = first_r @ rng.uniform(0.03, 0.97, 3) + first_t
        batch.frac_coords[0, slot] = x - np.floor(x)
    shape = np.r_[rng.uniform(0.7, 1.4, 3), rng.uniform(80, 100, 3)]
    cell = symmetrise_lattice(np.array(space_group), shape)
    cell[:3] *= (20 * int(batch.n_atoms[0]) / np.prod(cell[:3])) ** (1 / 3)
    batch.lattice[0] = cell
    return batch


@pytest.fixture(scope="session")
def random_crystal():
    """Function (space group, generator) -> batch of one random crystal of that group."""
    return _random_crystal
