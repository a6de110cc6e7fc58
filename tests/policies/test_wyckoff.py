"""What is sampled and what log_prob scores are one distribution, under every condition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax

from nucleate.policies.condition import Condition, element_mask
from nucleate.policies.distributions import (
    MAX_CONCENTRATION,
    MIN_SIGMA,
    SHARPEST,
    masked_log_softmax,
    split_gaussians,
    split_mixture,
)
from nucleate.policies.site_transformer import SiteTransformer
from nucleate.policies.tokens import Tokens
from nucleate.policies.wyckoff import PARTS, WyckoffPolicy
from nucleate.structures.symmetry import symmetrise_lattice, tables
from nucleate.structures.wyckoff import decode, encode
from tiny import condition, generator, tiny_policy

OXIDES = element_mask(["Li", "Ti", "Fe", "O"])
CONDITIONS = {
    "all groups": condition(),
    "one group": condition(62),
    "three groups": condition(1, 166, 225),
    "triclinic": condition(2),
    "elements": condition(elements=OXIDES),
    "no oxygen": condition(elements=element_mask(deny=["O"])),
    "cold": condition(temperature=0.4),
    "hot": condition(temperature=2.5),
    "coldest": condition(temperature=0.1),
    "narrow": condition(coordinate_temperature=0.3),
    "narrower": condition(coordinate_temperature=0.1),
    "narrowest": condition(coordinate_temperature=0.01),
    "wide": condition(coordinate_temperature=3.0),
    "nucleus": condition(top_p=0.7),
    "small cells": condition(max_atoms=24),
    "smallest cells": condition(1, 2, 5, 221, max_atoms=2),
    "class": condition(stability=3),
    "everything": condition(
        5,
        14,
        194,
        elements=OXIDES,
        temperature=0.8,
        coordinate_temperature=1.3,
        top_p=0.9,
        max_atoms=30,
        stability=4,
    ),
}


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(1)


@pytest.mark.parametrize("name", CONDITIONS)
def test_log_prob_is_that_of_sampling(policy, name):
    held = CONDITIONS[name]
    rollout = policy.sample(150, held, generator(4))
    batch = rollout.batch
    assert len(rollout) == len(batch) == 150 and rollout.log_prob.isfinite().all()
    again = policy.log_prob(rollout)
    torch.testing.assert_close(again, rollout.log_prob, atol=1e-4, rtol=0)
    torch.testing.assert_close(policy.log_prob(rollout, batch_size=11), again, atol=1e-4, rtol=0)
    # through the stored float32 cell the contacts and the scale are rounded
    stored = Tokens.from_batch(batch, stability=held.stability)
    with torch.no_grad():
        parts = policy.log_prob_parts(stored, held)
    torch.testing.assert_close(parts.sum(1), rollout.log_prob, atol=5e-3, rtol=0)
    # the condition was kept
    present = batch.wyckoff > 0
    assert held.elements[batch.species[present]].all() and (batch.species[~present] == 0).all()
    assert (held.space_groups[batch.space_group.astype(int)] > 0).all()
    primitive = batch.n_atoms / tables().centring_order[batch.space_group.astype(int) - 1]
    assert (primitive <= held.max_atoms).all()
    assert (batch.n_sites >= 1).all() and (batch.n_sites <= 6).all()


SHARP = {
    "as it is": condition(max_atoms=60),
    "narrow": condition(max_atoms=60, coordinate_temperature=0.3),
    "narrower": condition(max_atoms=60, coordinate_temperature=0.1),
    "narrowest": condition(max_atoms=60, coordinate_temperature=0.01),
    "cold nucleus": condition(max_atoms=60, temperature=0.3, top_p=0.8, elements=OXIDES),
    "fixed sites": condition(221, 225, max_atoms=8, coordinate_temperature=0.1),
}


@pytest.fixture(scope="module")
def sharp_policy() -> WyckoffPolicy:
    """Random weights of the size that ships, with densities as sharp as they may be."""
    torch.manual_seed(0)
    network = SiteTransformer().eval()
    geometry, draws = network.geometry, generator(1)
    with torch.no_grad():
        for head in geometry.coordinate_output:
            _, sine, cosine, concentration = head.bias.chunk(4)
            angle = 2 * np.pi * torch.rand(len(sine), generator=draws)
            sine.copy_(4 * angle.sin())
            cosine.copy_(4 * angle.cos())
            concentration.fill_(3000.0)
        for mixture, dimensions in ((geometry.shape_head, 5), (geometry.scale_head, 1)):
            n_sigmas = mixture[-1].out_features * dimensions // (1 + 2 * dimensions)
            mixture[-1].bias[-n_sigmas:] = -12.0
        for choice in (network.letter_query, network.species_head):
            choice[-1].weight *= 10.0
    return WyckoffPolicy(network)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARP)
def test_log_prob_is_that_of_sampling_for_the_sharpest_densities(sharp_policy, name):
    held = SHARP[name]
    rollout = sharp_policy.sample(80, held, generator(4))
    for size in (64, 7):
        again = sharp_policy.log_prob(rollout, batch_size=size)
        torch.testing.assert_close(again, rollout.log_prob, atol=1e-4, rtol=0)
    # the limits were reached
    tokens, geometry = sharp_policy.tokens(rollout), sharp_policy.network.geometry
    with torch.no_grad():
        encoding = geometry.encode(
            tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species
        )
        raw = geometry.coordinate_raw(0, encoding.states[:, 0], tokens.frac_coords[:, 0])
        _, _, sigma = split_gaussians(geometry.shape_raw(encoding), 5, held.coordinate_temperature)
    _, _, concentration = split_mixture(raw, held.coordinate_temperature)
    sharpest = max(SHARPEST, held.coordinate_temperature)
    torch.testing.assert_close(concentration.min(), concentration.max())
    assert concentration.max() == pytest.approx(MAX_CONCENTRATION / sharpest)
    assert sigma.max() == pytest.approx(MIN_SIGMA * sharpest**0.5, rel=1e-2)


@pytest.mark.parametrize("name", ["nucleus", "everything"])
def test_an_updated_policy_gives_what_was_drawn_a_finite_score(policy, name):
    rollout = policy.sample(100, CONDITIONS[name], generator(0))
    other = tiny_policy(2)
    assert other.log_prob(rollout).isfinite().all()
    torch.testing.assert_close(policy.log_prob(rollout), rollout.log_prob, atol=1e-4, rtol=0)


def test_draws_sum_to_the_parts_and_each_choice_is_scored_once(policy):
    rollout = policy.sample(60, CONDITIONS["all groups"], generator(1))
    batch, held = rollout.batch, CONDITIONS["all groups"]
    with torch.no_grad():
        draws = policy.log_prob_draws(policy.tokens(rollout), held)
    counts = torch.zeros(60, len(PARTS), dtype=torch.int64)
    counts.index_put_((draws.row, draws.part), torch.ones_like(draws.row), accumulate=True)
    group = batch.space_group.astype(int)[:, None] - 1
    free = tables().dof[group, batch.wyckoff].sum(1)
    expected = np.stack([batch.n_sites + 1, batch.n_sites, free, np.ones(60)], 1)
    np.testing.assert_array_equal(counts, expected)
    parts = draws.parts()
    torch.testing.assert_close(parts.sum(1), rollout.log_prob, atol=1e-4, rtol=0)
    torch.testing.assert_close(policy.log_prob_by_part(rollout), parts, atol=1e-4, rtol=0)
    discrete = rollout.trace["discrete"]
    torch.testing.assert_close(parts[:, :2].sum(1), discrete, atol=1e-4, rtol=0)


def test_samples_are_crystals_of_their_space_group(policy):
    batch = policy.sample(300, condition(max_atoms=40), generator(7)).batch
    structures, why = decode(batch)
    assert not any(why) and all(s is not None for s in structures)
    t, group = tables(), batch.space_group.astype(int)[:, None] - 1
    rotation, shift = (x[group, batch.wyckoff] for x in (t.first_rotation, t.first_translation))
    on_it = np.einsum("bsij,bsj->bsi", rotation, batch.frac_coords.astype(float)) + shift
    off = np.abs(on_it - batch.frac_coords) * (batch.wyckoff > 0)[..., None]
    assert np.minimum(off, 1 - off).max() < 1e-5
    assert (batch.frac_coords >= 0).all() and (batch.frac_coords < 1).all()
    letters = np.where(batch.wyckoff > 0, batch.wyckoff, 99).astype(int)
    assert (np.diff(letters, axis=1) >= 0).all()
    fixed = (t.dof[group, batch.wyckoff] == 0) & (batch.wyckoff > 0)
    assert not (fixed[:, 1:] & (letters[:, 1:] == letters[:, :-1])).any()  # taken once
    lattice = symmetrise_lattice(batch.space_group, batch.lattice)
    np.testing.assert_allclose(lattice, batch.lattice, rtol=1e-5)
    # atoms that don't touch have the space group that was asked for, or a supergroup's tokens
    apart = [i for i, s in enumerate(structures) if s.is_valid(tol=0.7)][:60]
    assert len(apart) > 20
    found, why = encode([structures[i] for i in apart])
    assert not any(why)
    same = found.space_group == batch.space_group[apart]
    assert same.mean() > 0.6
    order = [len(t.general_operations(g)[0]) / t.centring_order[g - 1] for g in range(1, 231)]
    grown = np.array(order)[found.space_group - 1] / np.array(order)[batch.space_group[apart] - 1]
    assert (grown >= 1).all()
    for i in np.flatnonzero(same):
        n = batch.n_sites[apart[i]]
        assert sorted(found.species[i][found.species[i] > 0]) == sorted(batch.species[apart[i], :n])
        one, two = found.multiplicity[i], batch.multiplicity[apart[i]]
        assert sorted(one[one > 0]) == sorted(two[two > 0])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_p": 0.8, "elements": OXIDES}])
def test_letters_and_species_are_drawn_as_often_as_their_probability_says(policy, options):
    n, group = 6000, 12
    held = condition(group, max_atoms=60, **options)
    drawn = protostructures(policy, n, held, generator(11))
    network, groups = policy.network, torch.tensor([group])
    with torch.no_grad():
        positions = network.embedding.positions(groups)
        state = network.start(groups, torch.zeros_like(groups)).state
        zero = torch.zeros_like(groups)
        allowed = policy._letters_allowed(groups, zero, zero, 0, held)
        logits = network.letter_logits(state.unsqueeze(1), positions)[:, 0]
        sharpness = {"temperature": held.temperature, "top_p": held.top_p}
        letters = masked_log_softmax(logits, allowed, **sharpness)[0].exp()
        species = torch.zeros(28, 119)
        for letter in letters.nonzero().squeeze(1):
            logits = network.species_logits(state, positions[:, letter])
            elements = torch.from_numpy(held.elements).unsqueeze(0)
            species[letter] = masked_log_softmax(logits, elements, **sharpness)[0].exp()
    joint = (letters.unsqueeze(1) * species).double().numpy()
    count = np.zeros((28, 119))
    np.add.at(count, (drawn["wyckoff"][:, 0], drawn["species"][:, 0]), 1)
    assert (count[joint == 0] == 0).all()
    for observed, expected in ((count.sum(1), joint.sum(1)), (count.ravel(), joint.ravel())):
        assert _chi_square(observed, expected * n) > 1e-3


@torch.no_grad()
def protostructures(
    policy: WyckoffPolicy, n: int, held: Condition, draws: torch.Generator
) -> dict[str, np.ndarray]:
    """Letters and species of ``n`` crystals without the cost of their geometries."""
    groups = held.draw_space_groups(n, draws)
    drawn = policy._sample_protostructures(groups, held, draws)
    return {name: value.numpy() for name, value in drawn.items()}


def _chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value, rare cells pooled."""
    often = expected >= 5
    one = np.r_[observed[often], observed[~often].sum()]
    two = np.r_[expected[often], expected[~often].sum()]
    one, two = one[two > 1], two[two > 1]
    return float(stats.chisquare(one, two * one.sum() / two.sum()).pvalue)


def test_second_letters_are_drawn_as_often_as_their_probability_says(policy):
    """A stop, a repeated letter and the count of atoms all enter the second draw's mask."""
    held = condition(47, max_atoms=4, elements=element_mask(["Fe"]))
    drawn = protostructures(policy, 8000, held, generator(3))
    wyckoff = drawn["wyckoff"]
    # a position without freedom, which may be taken once
    first = int(np.bincount(wyckoff[tables().dof[46, wyckoff[:, 0]] == 0, 0]).argmax())
    second = wyckoff[wyckoff[:, 0] == first, 1]
    group, letter = torch.tensor([47]), torch.tensor([first])
    with torch.no_grad():
        states, positions = policy.network.trunk(
            group, torch.zeros_like(group), letter[:, None], torch.tensor([[26]])
        )
        atoms = policy.tables.atoms[group, letter]
        allowed = policy._letters_allowed(group, letter, atoms, 1, held)
        logits = policy.network.letter_logits(states, positions)[:, 1]
        expected = masked_log_softmax(logits, allowed)[0].exp().double().numpy()
    assert expected[first] == 0 and expected[0] > 0
    observed = np.bincount(second, minlength=28)
    assert (observed[expected == 0] == 0).all()
    assert _chi_square(observed.astype(float), expected * len(second)) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@torch.no_grad()
def test_coordinates_and_lattices_are_drawn_from_the_densities_that_score_them(temperature):
    """Of one atom in P1: cumulative probabilities of what was drawn are spread evenly."""
    policy, n = tiny_policy(6), 1500
    held = condition(1, max_atoms=1, coordinate_temperature=temperature)
    tokens = policy.tokens(policy.sample(n, held, generator(5)))
    geometry, shape, coords = policy.network.geometry, tokens.parameters[:, 1:], tokens.frac_coords
    encoding = geometry.encode(tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species)
    states = geometry.decode(
        encoding,
        geometry.shape_state(shape),
        torch.tensor([[1, 0]]).expand(n, -1),
        torch.nn.functional.pad(coords, (0, 0, 0, 1)),
    )
    below = []
    for axis in range(3):
        raw = geometry.coordinate_raw(axis, states[:, 0], coords[:, 0])
        logits, location, sharpness = (x.double().numpy() for x in split_mixture(raw, temperature))
        angle = 2 * np.pi * (coords[:, 0, axis, None].double().numpy() - 0.5)
        upper, lower = (stats.vonmises.cdf(x, sharpness, location) for x in (angle, -np.pi))
        below.append((softmax(logits, axis=1) * (upper - lower)).sum(1))
    scale = geometry.scale_raw(
        states[:, 1], tokens.contact_species, tokens.contact_features, tokens.tight
    )
    beyond = (tokens.parameters[:, 0] - tokens.tight)[:, None]
    for raw, value in ((geometry.shape_raw(encoding), shape), (scale, beyond)):
        logits, mean, sigma = split_gaussians(raw, value.shape[1], temperature)
        normal = torch.distributions.Normal(mean, sigma).cdf(value[:, None])
        below.extend((logits.softmax(1)[..., None] * normal).sum(1).T.numpy())
    assert len(below) == 3 + 6
    for probability in below:
        assert stats.kstest(probability, "uniform").pvalue > 1e-3


def test_neither_padding_nor_neighbours_change_a_score(policy):
    held = CONDITIONS["all groups"]
    rollout = policy.sample(80, held, generator(2))
    tokens = policy.tokens(rollout)
    with torch.no_grad():
        together = policy.log_prob_parts(tokens, held)
        padded = replace(
            tokens,
            wyckoff=torch.nn.functional.pad(tokens.wyckoff, (0, 6 - tokens.wyckoff.shape[1])),
            species=torch.nn.functional.pad(tokens.species, (0, 6 - tokens.species.shape[1])),
            frac_coords=torch.nn.functional.pad(
                tokens.frac_coords, (0, 0, 0, 6 - tokens.frac_coords.shape[1])
            ),
        )
        torch.testing.assert_close(policy.log_prob_parts(padded, held), together)
        few = tokens.select(tokens.n_sites == tokens.n_sites.min())
        assert few.wyckoff.shape[1] < tokens.wyckoff.shape[1]
        rows = tokens.n_sites == tokens.n_sites.min()
        torch.testing.assert_close(
            policy.log_prob_parts(few, held), together[rows], atol=1e-4, rtol=1e-5
        )
        for i in (0, 33, 79):
            alone = policy.log_prob_parts(tokens.select(slice(i, i + 1)), held)
            torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-5)


def test_equal_seeds_give_equal_crystals(policy):
    for held in (CONDITIONS["all groups"], CONDITIONS["everything"]):
        one, two = (policy.sample(50, held, generator(8)) for _ in range(2))
        for name, value in vars(one.batch).items():
            np.testing.assert_array_equal(getattr(two.batch, name), value)
        assert torch.equal(one.log_prob, two.log_prob)
        other = policy.sample(50, held, generator(9)).batch
        assert {one.batch.digest(i) for i in range(50)}.isdisjoint(
            other.digest(i) for i in range(50)
        )


def test_fixed_and_tied_coordinates_carry_no_density(policy):
    """Rotating what a position fixes would change nothing: only free angles are scored."""
    held = CONDITIONS["all groups"]
    rollout = policy.sample(200, held, generator(6))
    tokens, batch = policy.tokens(rollout), rollout.batch
    group = batch.space_group.astype(int)[:, None] - 1
    no_freedom = tables().dof[group, batch.wyckoff].sum(1) == 0
    with torch.no_grad():
        parts = policy.log_prob_parts(tokens, held)
    assert no_freedom.any() and (parts[no_freedom, 2] == 0).all()
    assert (parts[~no_freedom, 2] != 0).all()


def test_lattice_parameters_that_symmetry_sets_carry_no_density(policy):
    held = condition(225)
    tokens = policy.tokens(policy.sample(30, held, generator(6)))
    noise = torch.randn(30, 5, generator=generator(0))
    moved = replace(tokens, parameters=torch.cat([tokens.parameters[:, :1], noise], 1))
    with torch.no_grad():
        one, two = (policy.log_prob_parts(t, held)[:, 3] for t in (tokens, moved))
    assert torch.equal(one, two)


def test_training_space_groups_are_a_distribution():
    weights = tiny_policy().training_space_groups()
    assert weights.sum() == pytest.approx(1) and weights[225] == pytest.approx(0.5)
