"""The trunk is causal, its cache exact, and padding is never seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nucleate.policies.site_transformer import SiteTransformer, SiteTransformerConfig
from nucleate.policies.tokens import Tokens
from tiny import condition, generator, tiny_policy


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """Crystals of up to six sites."""
    drawn = tiny_policy().sample(80, condition(max_atoms=60), generator(2)).trace["tokens"]
    return drawn.select(drawn.n_sites >= 2)


def trunk(network: SiteTransformer, tokens: Tokens) -> torch.Tensor:
    states, _ = network.trunk(
        tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species, tokens.frac_coords
    )
    return states


@torch.no_grad()
def test_a_state_depends_on_finished_sites_alone(tokens):
    network = tiny_policy().network
    before = trunk(network, tokens)
    assert before.shape == (len(tokens), tokens.wyckoff.shape[1] + 1, network.config.width)
    last = tokens.wyckoff.shape[1] - 1
    species, coords = tokens.species.clone(), tokens.frac_coords.clone()
    species[:, last], coords[:, last] = 8, 0.123
    after = trunk(network, replace(tokens, species=species, frac_coords=coords))
    assert torch.equal(before[:, : last + 1], after[:, : last + 1])
    assert not torch.allclose(before[:, last + 1], after[:, last + 1])
    for name, value in (("stability", 1), ("space_group", 7)):
        moved = replace(tokens, **{name: (getattr(tokens, name) + value).clamp(max=230)})
        assert (trunk(network, moved) - before).abs().amax((1, 2)).median() > 1e-2


@torch.no_grad()
def test_cached_decoding_gives_the_states_of_the_whole_pass(tokens):
    network = tiny_policy(1).network
    whole = trunk(network, tokens)
    positions = network._positions(tokens.space_group)
    rows = torch.arange(len(tokens))
    decoding = network.start(tokens.space_group, tokens.stability)
    for site in range(tokens.wyckoff.shape[1]):
        assert torch.allclose(decoding.state, whole[:, site], atol=1e-5)
        position = positions[rows, tokens.wyckoff[:, site]]
        decoding = network.finish_site(
            decoding, position, tokens.species[:, site], tokens.frac_coords[:, site]
        )
    assert torch.allclose(decoding.state, whole[:, -1], atol=1e-5)
    chosen = torch.tensor([3, 0])
    part = decoding.select(chosen)
    assert torch.equal(part.state, decoding.state[chosen])
    assert torch.equal(part.keys[1], decoding.keys[1][chosen])


def test_every_weight_is_trained(tokens):
    policy = tiny_policy(3)
    drawn = policy.sample(300, condition(), generator(0))
    policy.log_prob_parts(policy.tokens(drawn), drawn.trace["condition"]).sum().backward()
    silent = [
        name
        for name, weight in policy.network.named_parameters()
        if weight.grad is None or not weight.grad.abs().sum() > 0
    ]
    assert silent == []


def test_dropout_acts_in_training_only(tokens):
    policy = tiny_policy(dropout=0.5)
    policy.network.eval()
    assert torch.equal(trunk(policy.network, tokens), trunk(policy.network, tokens))
    policy.network.train()
    assert not torch.equal(trunk(policy.network, tokens), trunk(policy.network, tokens))


def test_config_round_trip():
    config = tiny_policy().network.config
    assert SiteTransformerConfig(**config.to_dict()) == config
