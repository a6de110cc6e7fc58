"""Policies so small that a test of one takes a second."""

from __future__ import annotations

import numpy as np
import torch

from nucleate.policies.condition import Condition
from nucleate.policies.site_transformer import SiteTransformer, SiteTransformerConfig
from nucleate.policies.wyckoff import WyckoffPolicy

ALL_GROUPS = np.r_[0.0, np.ones(230)]


def tiny_policy(seed: int = 0, *, sharpness: float = 4.0, dropout: float = 0.0) -> WyckoffPolicy:
    """Random weights; ``sharpness`` multiplies the logits so that draws differ in probability."""
    torch.manual_seed(seed)
    config = SiteTransformerConfig(
        width=32,
        layers=2,
        encoder_layers=1,
        decoder_layers=2,
        heads=2,
        embedding=16,
        harmonics=2,
        coordinate_components=3,
        shape_components=3,
        scale_components=2,
        dropout=dropout,
        max_sites=6,
    )
    network = SiteTransformer(config).eval()
    with torch.no_grad():
        for head in (network.species_head, network.letter_query):
            head[-1].weight *= sharpness
        network.letter_bias.weight.normal_(std=0.2)
        # cells about as large as the contacts ask for
        network.geometry.shape_head[-1].bias[-5 * 3 :] = -2.0
        network.geometry.scale_head[-1].bias[2:4] = 0.2
        network.geometry.scale_head[-1].bias[4:] = -2.5
    return WyckoffPolicy(network, {"space_groups": {2: 3, 62: 2, 225: 5}, "data": "none"})


def groups(*numbers: int) -> np.ndarray:
    """Weights that draw evenly from some space groups."""
    weights = np.zeros(231)
    weights[list(numbers)] = 1.0
    return weights


def condition(*numbers: int, **options: object) -> Condition:
    """A condition on some space groups; all 230 by default."""
    options.setdefault("max_atoms", 200)
    return Condition(groups(*numbers) if numbers else ALL_GROUPS, **options)  # type: ignore[arg-type]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(seed)
