"""The trunk is causal and its cache exact; the geometry has weights of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nucleate.policies.site_transformer import SiteTransformer, SiteTransformerConfig
from nucleate.policies.tokens import Tokens
from tiny import condition, generator, tiny_policy


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """Crystals of two to six sites."""
    drawn = tiny_policy().sample(80, condition(max_atoms=60), generator(2)).trace["tokens"]
    return drawn.select(drawn.n_sites >= 2)


def trunk(network: SiteTransformer, tokens: Tokens) -> torch.Tensor:
    states, _ = network.trunk(tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species)
    return states


@torch.no_grad()
def test_a_state_depends_on_finished_sites_alone(tokens):
    network = tiny_policy().network
    before = trunk(network, tokens)
    n_sites = tokens.wyckoff.shape[1]
    assert before.shape == (len(tokens), n_sites + 1, network.config.width)
    for site in range(n_sites):
        for name in ("species", "wyckoff"):
            value = getattr(tokens, name).clone()
            value[:, site] = torch.where(value[:, site] == 1, 2, 1)
            after = trunk(network, replace(tokens, **{name: value}))
            assert torch.equal(before[:, : site + 1], after[:, : site + 1])
            assert ((after - before)[:, site + 1 :].abs().amax(2) > 1e-5).all()
    for name in ("stability", "space_group"):
        other = replace(tokens, **{name: (getattr(tokens, name) + 1).clamp(max=230)})
        assert (trunk(network, other) - before).abs().amax((1, 2)).median() > 1e-2


@torch.no_grad()
def test_cached_decoding_gives_the_states_of_the_whole_pass(tokens):
    network = tiny_policy(1).network
    whole = trunk(network, tokens)
    positions = network.embedding.positions(tokens.space_group)
    rows, draws = torch.arange(len(tokens)), generator(0)
    decoding = network.start(tokens.space_group, tokens.stability)
    for site in range(tokens.wyckoff.shape[1]):
        torch.testing.assert_close(decoding.state, whole[rows, site], atol=1e-5, rtol=0)
        kept = torch.randperm(len(rows), generator=draws)[:-3]  # some end, all change places
        rows, decoding = rows[kept], decoding.select(kept)
        assert torch.equal(decoding.space_group, tokens.space_group[rows])
        position = positions[rows, tokens.wyckoff[rows, site]]
        decoding = network.finish_site(decoding, position, tokens.species[rows, site])
    torch.testing.assert_close(decoding.state, whole[rows, -1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_see_what_has_been_drawn(tokens):
    network = tiny_policy().network
    states, positions = network.trunk(
        tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species
    )
    letters = network.letter_logits(states, positions)
    assert letters.shape == (*states.shape[:2], 28)
    one, two = (network.species_logits(states[:, 0], positions[:, k]) for k in (1, 2))
    assert one.shape == (len(tokens), 119)
    assert (one - two).abs().amax(1).median() > 1e-2


def test_every_weight_is_trained():
    policy = tiny_policy(3)
    drawn = policy.sample(300, condition(), generator(0))
    policy.log_prob_parts(policy.tokens(drawn), drawn.trace["condition"]).sum().backward()
    silent = [
        name
        for name, weight in policy.network.named_parameters()
        if weight.grad is None or not weight.grad.abs().sum() > 0
    ]
    assert silent == []


@pytest.mark.parametrize("drawn_first", [True, False])
def test_protostructure_and_geometry_share_no_weight(drawn_first):
    policy = tiny_policy(3)
    rollout = policy.sample(60, condition(), generator(0))
    parts = policy.log_prob_parts(policy.tokens(rollout), rollout.trace["condition"])
    (parts[:, :2] if drawn_first else parts[:, 2:]).sum().backward()
    reached = {
        name.startswith("geometry.")
        for name, weight in policy.network.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }
    assert reached == {not drawn_first}


def test_dropout_acts_in_training_only(tokens):
    policy = tiny_policy(dropout=0.5)
    policy.network.eval()
    assert torch.equal(trunk(policy.network, tokens), trunk(policy.network, tokens))
    policy.network.train()
    assert not torch.equal(trunk(policy.network, tokens), trunk(policy.network, tokens))


def test_config_round_trip():
    config = tiny_policy().network.config
    assert SiteTransformerConfig(**config.to_dict()) == config
