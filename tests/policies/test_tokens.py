"""Tokens keep their crystals; no row is wider than its crystals need."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nucleate.policies import lattice
from nucleate.policies.contacts import find_contacts
from nucleate.policies.tokens import Tokens, buckets
from tiny import condition, generator, tiny_policy


def test_from_batch_and_select():
    batch = tiny_policy().sample(60, condition(max_atoms=30), generator(1)).batch
    tokens = Tokens.from_batch(batch, stability=np.arange(60) % 5)
    parameters = lattice.to_parameters(batch.lattice, batch.n_atoms)
    given_contacts = Tokens.from_batch(
        batch, parameters=parameters, contacts=find_contacts(batch, parameters)
    )
    for name in ("parameters", "contact_species", "contact_features", "tight"):
        assert torch.equal(getattr(tokens, name), getattr(given_contacts, name))
    np.testing.assert_array_equal(tokens.n_sites, batch.n_sites)
    rows = torch.tensor(np.argsort(batch.n_sites)[:7].copy())
    few = tokens.select(rows)
    assert len(few) == 7
    assert few.wyckoff.shape[1] == few.species.shape[1] == int(tokens.n_sites[rows].max())
    assert few.frac_coords.shape[1] == few.wyckoff.shape[1]
    for i, row in enumerate(rows.tolist()):
        n = int(tokens.n_sites[row])
        for name in ("wyckoff", "species", "frac_coords"):
            assert torch.equal(getattr(few, name)[i, :n], getattr(tokens, name)[row, :n])
        for name in ("space_group", "stability", "parameters", "tight"):
            assert torch.equal(getattr(few, name)[i], getattr(tokens, name)[row])
    assert len(tokens.select(slice(0, 0))) == 0
    assert tokens.to("cpu").wyckoff.equal(tokens.wyckoff)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=50), st.integers(1, 20))
def test_buckets_hold_each_crystal_once_and_neighbours_together(n_sites, size):
    counts = torch.tensor(n_sites)
    parts = buckets(counts, size)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(n_sites)))
    assert all(len(part) <= size for part in parts)
    assert counts[torch.cat(parts)].tolist() == sorted(n_sites)
