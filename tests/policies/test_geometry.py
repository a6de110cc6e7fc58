"""A geometry sees its whole protostructure and what was drawn before, and nothing else."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nucleate.policies.distributions import von_mises_log_prob
from nucleate.policies.geometry import GeometryTransformer
from nucleate.policies.tokens import Tokens
from nucleate.policies.wyckoff import WyckoffPolicy
from tiny import condition, generator, tiny_policy

HELD = condition(max_atoms=60)
SHAPE, SCALE = slice(1, 6), 0


@pytest.fixture(scope="module")
def policy() -> WyckoffPolicy:
    return tiny_policy(1)


@pytest.fixture(scope="module")
def tokens(policy) -> Tokens:
    """Crystals of one to six sites, some without a free coordinate."""
    return policy.sample(120, HELD, generator(2)).trace["tokens"]


def movable(policy: WyckoffPolicy, tokens: Tokens) -> torch.Tensor:
    """(B, S) bool, sites with a free coordinate."""
    return policy.tables.movable[tokens.space_group[:, None], tokens.wyckoff]


@torch.no_grad()
def decoded(policy: WyckoffPolicy, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """States (B, M, width) of the whole pass, and the positions (B, M) that they draw."""
    geometry = policy.network.geometry
    encoding = geometry.encode(tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species)
    position, _ = policy._positions_to_draw(tokens.space_group, tokens.wyckoff)
    coords = tokens.frac_coords[torch.arange(len(tokens))[:, None], (position - 1).clamp(min=0)]
    shape = geometry.shape_state(tokens.parameters[:, SHAPE])
    return geometry.decode(encoding, shape, position, coords), position


@torch.no_grad()
def densities(policy: WyckoffPolicy, tokens: Tokens) -> dict[str, torch.Tensor]:
    """Log-densities: ``coordinates`` (B, S, 3), NaN where none is free; ``shape``; ``scale``."""
    draws = policy.log_prob_draws(tokens, HELD)
    free = policy.tables.free[tokens.space_group[:, None], tokens.wyckoff]
    coordinates = torch.full(free.shape, torch.nan)
    for row in range(len(tokens)):
        mine = draws.value[(draws.row == row) & (draws.part == 2)]
        axis, site = free[row].T.nonzero(as_tuple=True)  # all x first, then y, then z
        coordinates[row, site, axis] = mine
    raw = policy.network.geometry.shape_raw(
        policy.network.geometry.encode(
            tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species
        )
    )
    return {"coordinates": coordinates, "shape": raw, "lattice": draws.parts()[:, 3]}


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    return torch.allclose(one, two, atol=1e-5, rtol=0, equal_nan=True)


def test_positions_to_draw_are_the_movable_sites_in_order_then_the_scale(policy, tokens):
    position, count = policy._positions_to_draw(tokens.space_group, tokens.wyckoff)
    sites = movable(policy, tokens)
    assert (sites & (tokens.wyckoff == 0)).sum() == 0
    assert 0 in count and count.max() > 3 and position.shape == (len(tokens), count.max() + 1)
    for row in range(len(tokens)):
        expected = (sites[row].nonzero().squeeze(1) + 1).tolist()
        assert position[row, : count[row]].tolist() == expected
        assert not position[row, count[row] :].any()


@pytest.mark.parametrize("seed", [1, 2])
@torch.no_grad()
def test_decoding_step_by_step_gives_the_states_of_the_whole_pass(seed, tokens):
    policy = tiny_policy(seed)
    geometry = policy.network.geometry
    _, count = policy._positions_to_draw(tokens.space_group, tokens.wyckoff)
    tokens = tokens.select(count.argsort(descending=True, stable=True))
    whole, position = decoded(policy, tokens)
    encoding = geometry.encode(tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species)
    shape = geometry.shape_state(tokens.parameters[:, SHAPE])
    decoding = geometry.start(encoding, shape, position.shape[1])
    previous, coords = torch.zeros(len(tokens), dtype=torch.int64), torch.zeros(len(tokens), 3)
    n_steps = 0
    for step in range(position.shape[1]):
        n = int((count >= step).sum())  # the others have drawn their scale
        now = position[:n, step]
        state = geometry.advance(decoding, now, previous[:n], coords[:n])
        torch.testing.assert_close(state, whole[:n, step], atol=1e-5, rtol=0)
        previous, n_steps = now, n_steps + n
        coords = tokens.frac_coords[torch.arange(n), (now - 1).clamp(min=0)]
    assert n_steps == int((count + 1).sum()) and decoding.done == position.shape[1]


@torch.no_grad()
def test_neither_empty_sites_nor_longer_neighbours_change_anything(policy, tokens):
    geometry = policy.network.geometry
    short = tokens.select(tokens.n_sites <= 2)
    padded = replace(
        short,
        wyckoff=F.pad(short.wyckoff, (0, 4)),
        species=F.pad(short.species, (0, 4)),
        frac_coords=F.pad(short.frac_coords, (0, 0, 0, 4)),
    )
    assert short.wyckoff.shape[1] == 2 < padded.wyckoff.shape[1]
    one, two = (
        geometry.encode(t.space_group, t.stability, t.wyckoff, t.species) for t in (short, padded)
    )
    assert torch.equal(two.present, F.pad(one.present, (0, 4)))
    assert same(one.states[one.present], two.states[two.present])
    assert same(geometry.shape_raw(one), geometry.shape_raw(two))
    # more positions after the scale
    states, position = decoded(policy, short)
    shape = geometry.shape_state(short.parameters[:, SHAPE])
    coords = short.frac_coords[torch.arange(len(short))[:, None], (position - 1).clamp(min=0)]
    longer = geometry.decode(
        two, shape, F.pad(position, (0, 3)), F.pad(coords, (0, 0, 0, 3), value=0.3)
    )
    assert same(states, longer[:, : position.shape[1]])
    # all draws, beside crystals of more sites
    alone, beside = densities(policy, short), densities(policy, tokens)
    rows = tokens.n_sites <= 2
    assert same(alone["coordinates"], beside["coordinates"][rows][:, :2])
    assert torch.allclose(alone["lattice"], beside["lattice"][rows], atol=1e-4)


def test_a_coordinate_is_seen_by_what_is_drawn_later_and_by_nothing_else(policy, tokens):
    """Sites in order; of one site x, then y, then z; the scale at the end."""
    before = densities(policy, tokens)
    free = policy.tables.free[tokens.space_group[:, None], tokens.wyckoff]
    order = torch.arange(tokens.wyckoff.shape[1] * 3).view(-1, 3)
    seen = {"own": 0, "later": 0, "scale": 0}
    for site in range(tokens.wyckoff.shape[1]):
        for axis in range(3):
            changed = free[:, site, axis]
            coords = tokens.frac_coords.clone()
            coords[changed, site, axis] = (coords[changed, site, axis] + 0.37) % 1
            # the contacts stay as they are, so that the scale sees the states alone
            after = densities(policy, replace(tokens, frac_coords=coords))
            assert torch.equal(before["shape"], after["shape"])
            moved = (after["coordinates"] - before["coordinates"]).nan_to_num().abs() > 1e-7
            assert not moved[~changed].any()
            earlier = order < order[site, axis]
            assert not moved[:, earlier].any()
            seen["own"] += moved[changed, site, axis].float().mean() > 0.9
            later = moved[changed][:, order > order[site, axis]]
            possible = free[changed][:, order > order[site, axis]]
            assert not possible.any() or (later.sum() > 0.9 * possible.sum())
            seen["later"] += int(later.sum())
            scale = (after["lattice"] - before["lattice"]).abs()
            assert not changed.any() or (scale[changed] > 0).float().mean() > 0.9
            assert not scale[~changed].any()
            seen["scale"] += int((scale > 0).sum())
    assert seen["own"] >= 9 and seen["later"] > 100 and seen["scale"] > 100


def test_every_draw_sees_the_species_of_every_site(policy, tokens):
    before = densities(policy, tokens)
    for site in range(tokens.wyckoff.shape[1]):
        changed = tokens.wyckoff[:, site] > 0
        species = tokens.species.clone()
        species[changed, site] = torch.where(species[changed, site] == 8, 26, 8)
        after = densities(policy, replace(tokens, species=species))
        moved = (after["coordinates"] - before["coordinates"]).abs()[changed]
        assert (moved[moved.isfinite()] > 0).float().mean() > 0.99
        shape = (after["shape"] - before["shape"]).abs().amax(1)
        assert (shape[changed] > 1e-4).all() and not shape[~changed].any()
        assert ((after["lattice"] - before["lattice"])[changed] != 0).float().mean() > 0.99


def test_coordinates_and_scale_see_the_shape_that_was_drawn(policy):
    """Also of a crystal without a free coordinate."""
    tokens = policy.sample(60, condition(2, max_atoms=12), generator(1)).trace["tokens"]
    parameters = tokens.parameters.clone()
    parameters[:, SHAPE] += 0.5
    moved = replace(tokens, parameters=parameters)
    one, two = densities(policy, tokens), densities(policy, moved)
    assert torch.equal(one["shape"], two["shape"])  # the mixture itself comes first
    difference = (one["coordinates"] - two["coordinates"]).abs()
    assert (difference[difference.isfinite()] > 0).float().mean() > 0.99
    one, two = decoded(policy, tokens), decoded(policy, moved)
    last = (one[1] > 0).sum(1)
    rows = torch.arange(60)
    assert 0 in last
    assert ((one[0] - two[0])[rows, last].abs().amax(1) > 1e-3).all()


def test_the_scale_sees_the_contacts(policy, tokens):
    raw, geometry = {}, policy.network.geometry
    states, position = decoded(policy, tokens)
    state = states[torch.arange(len(tokens)), (position > 0).sum(1)]
    inputs = {
        "contact_species": tokens.contact_species,
        "contacts": tokens.contact_features,
        "tight": tokens.tight,
    }
    changes = {
        "nothing": {},
        "species": {"contact_species": tokens.contact_species.flip(0)},
        "contacts": {"contacts": tokens.contact_features + 0.3},
        "tight": {"tight": tokens.tight + 0.3},
    }
    with torch.no_grad():
        for name, change in changes.items():
            raw[name] = geometry.scale_raw(state, **(inputs | change))
    for name in ("species", "contacts", "tight"):
        assert ((raw[name] - raw["nothing"]).abs().amax(1) > 1e-5).float().mean() > 0.9
    # two species of a contact are a pair, and contacts that are missing have no features
    swapped = {"contact_species": tokens.contact_species.flip(2)}
    missing = (tokens.contact_species[..., 0] == 0).unsqueeze(-1)
    assert missing.any()
    filled = {"contacts": torch.where(missing, 7.0, tokens.contact_features)}
    with torch.no_grad():
        for change in (swapped, filled):
            assert same(geometry.scale_raw(state, **(inputs | change)), raw["nothing"])


def test_crystals_without_a_free_coordinate_draw_shape_and_scale_alone(policy):
    """Rock salt: no site is drawn; alone and beside others."""
    held = condition(225, max_atoms=2)
    fixed = policy.sample(40, held, generator(0))
    tokens = policy.tokens(fixed)
    position, count = policy._positions_to_draw(tokens.space_group, tokens.wyckoff)
    assert not count.any() and position.shape == (40, 1)
    parts = policy.log_prob_by_part(fixed)
    assert not parts[:, 2].any() and parts[:, 3].all()
    torch.testing.assert_close(parts.sum(1), fixed.log_prob, atol=1e-4, rtol=0)
    mixed = policy.sample(90, condition(2, 221, 225, max_atoms=20), generator(0))
    counts = policy._positions_to_draw(
        *(getattr(policy.tokens(mixed), name) for name in ("space_group", "wyckoff"))
    )[1]
    assert 0 in counts and counts.max() > 1
    together = policy.log_prob(mixed)
    torch.testing.assert_close(together, mixed.log_prob, atol=1e-4, rtol=0)
    still = counts == 0
    with torch.no_grad():
        alone = policy.log_prob_parts(policy.tokens(mixed).select(still), mixed.trace["condition"])
    torch.testing.assert_close(alone.sum(1), together[still], atol=1e-4, rtol=0)
    # in training too: every weight that takes part has a gradient, even if it is 0
    policy.log_prob_parts(tokens, held).sum().backward()
    grads = {n: w.grad for n, w in policy.network.geometry.named_parameters()}
    policy.network.zero_grad(set_to_none=True)
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())


@torch.no_grad()
def test_locations_are_angles_of_vectors(policy):
    """Longer vectors are the same angles; turned ones are shifted coordinates."""
    network = tiny_policy(4).network.geometry
    k = network.config.coordinate_components
    state, coords = torch.randn(50, network.config.width, generator=generator(0)), torch.rand(50, 3)
    x = torch.rand(50, generator=generator(1))
    vector = slice(k, 3 * k)
    for axis in range(3):
        output = network.coordinate_output[axis]
        weight, bias = output.weight.clone(), output.bias.normal_(generator=generator(2)).clone()
        before = network.coordinate_raw(axis, state, coords)
        assert before.shape == (50, 3 * k)
        assert before[:, k : 2 * k].abs().max() <= math.pi
        output.weight[vector] *= 3.0
        output.bias[vector] *= 3.0
        assert same(network.coordinate_raw(axis, state, coords), before)
        shift = 0.3
        turn = torch.tensor(2 * math.pi * shift)
        for stored in (weight, bias):
            sine, cosine = stored[k : 2 * k], stored[2 * k : 3 * k]
            turned = torch.cat(
                [
                    sine * turn.cos() + cosine * turn.sin(),
                    cosine * turn.cos() - sine * turn.sin(),
                ]
            )
            (output.weight if stored.ndim == 2 else output.bias)[vector] = turned
        after = network.coordinate_raw(axis, state, coords)
        assert torch.equal(after[:, :k], before[:, :k])
        assert torch.equal(after[:, 2 * k :], before[:, 2 * k :])
        torch.testing.assert_close(
            von_mises_log_prob(after, (x + shift) % 1),
            von_mises_log_prob(before, x),
            atol=1e-4,
            rtol=0,
        )


def test_dropout_acts_in_training_only(tokens):
    policy = tiny_policy(dropout=0.5)
    assert torch.equal(decoded(policy, tokens)[0], decoded(policy, tokens)[0])
    policy.network.train()
    one, two = decoded(policy, tokens)[0], decoded(policy, tokens)[0]
    assert not torch.equal(one, two)


def test_heads_work_in_full_precision_whatever_the_network_does(policy, tokens):
    geometry: GeometryTransformer = policy.network.geometry
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoding = geometry.encode(
            tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species
        )
        raw = geometry.shape_raw(encoding)
    with torch.no_grad():
        exact = copy.deepcopy(geometry.shape_head).double()(encoding.states[:, 0].double())
    assert raw.dtype == torch.float64 and torch.equal(raw, exact)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = policy.log_prob_parts(tokens, HELD)
    with torch.no_grad():
        fine = policy.log_prob_parts(tokens, HELD)
    assert rough.isfinite().all() and (rough - fine).abs().median() < 0.1
