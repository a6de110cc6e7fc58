"""The original's procedure on the published network, in PyTorch: what the benchmarks compare with.

CrystalFormer-RL (arXiv:2504.02367) pads every crystal to 21 rows of five tokens. It draws each of
the 105 tokens from a new forward pass over all 105, and goes on to the end when a crystal has long
stopped; it trains on the same padded rows. Size: Table S1, 4.8 million parameters.

Where this differs from the original it is faster: float32 (the original samples in float64), fused
causal attention in sampling (the original writes out all scores), and PyTorch in place of compiled
JAX, which draws 0.1 crystals a second in float32 and trains on 2.3 on one core of a comparable
machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from nucleate.policies.condition import Condition
from nucleate.policies.distributions import (
    categorical,
    masked_log_softmax,
    sample_von_mises,
    von_mises_log_prob,
)
from nucleate.policies.published import PublishedConfig, PublishedTransformer
from nucleate.policies.published_policy import PublishedPolicy
from nucleate.policies.tokens import Tokens
from nucleate.protocols import Rollout
from nucleate.structures.wyckoff import WyckoffBatch

ROWS = 21
LETTERS = 28


@dataclass(frozen=True)
class Cost:
    """Processor time of one thread for a number of crystals."""

    seconds: float
    crystals: int

    @property
    def rate(self) -> float:
        """Crystals a second."""
        return self.crystals / self.seconds

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.crystals + other.crystals)


def one_thread() -> None:
    """One thread, and memory that stays with the process, for all that it compares."""
    torch.set_num_threads(1)
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        print("this C library can't keep freed memory; both sides pay for new pages")


class PaddedTransformer(PublishedTransformer):
    """The published network over exactly the 5 S tokens of its S rows."""

    def trunk(
        self,
        space_group: torch.Tensor,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
        multiplicity: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, 5 S + 1, width); the last row, which ``heads`` expects, is empty and never read."""
        group = space_group.long()[:, None]
        letter = wyckoff.long()
        tokens = [self._letter_token(group, letter, self.multiplicity[group, letter])]
        tokens.append(self._species_token(group, species.long()))
        tokens.extend(self._coordinate_token(group, k, frac_coords[..., k]) for k in range(3))
        hidden = torch.stack(tokens, dim=2).flatten(1, 2)
        rotation = self._rotation(0, hidden.shape[1])
        for block in self.blocks:
            hidden = block(hidden, rotation)
        return F.pad(self.output_norm(hidden), (0, 0, 0, 1))


def published_policies(
    like: WyckoffBatch, condition: Condition
) -> tuple[PublishedPolicy, PublishedPolicy]:
    """The package's policy over Table S1 and the padded one, with the same weights.

    The weights are random but for the bias of letters and stop, which is set so that crystals have
    as many sites as ``like``: random weights alone stop after one or two, which would flatter
    whoever stops early.

    Args:
        like: crystals whose letters and numbers of sites are met.
        condition: what is drawn.
    """
    config = PublishedConfig()
    network = PublishedTransformer(config, torch.Generator().manual_seed(0))
    policy = PublishedPolicy(network.eval())
    present = np.bincount(like.wyckoff[like.wyckoff > 0], minlength=LETTERS)
    frequency = np.r_[len(like), present[1:]] + 0.5
    bias = torch.from_numpy(np.log(frequency / frequency.sum()).astype(np.float32))
    most, least = 8.0, 0.0
    with torch.no_grad():
        network.first_letter[-1].bias[:] = bias
        network.output.bias[:LETTERS] = bias
        for _ in range(6):
            lowered = (most + least) / 2
            network.output.bias[0] = bias[0] - lowered
            drawn = policy.sample(192, condition, torch.Generator().manual_seed(1)).batch
            if drawn.n_sites.mean() < like.n_sites.mean():
                least = lowered
            else:
                most = lowered
    padded = PaddedTransformer(config)
    padded.load_state_dict(network.state_dict())
    return policy, PublishedPolicy(padded.eval())


def padded_to(tokens: Tokens, rows: int = ROWS) -> Tokens:
    """The same crystals with ``rows`` rows of sites."""
    extra = rows - tokens.wyckoff.shape[1]
    return Tokens(
        **{
            **tokens.__dict__,
            "wyckoff": F.pad(tokens.wyckoff, (0, extra)),
            "species": F.pad(tokens.species, (0, extra)),
            "frac_coords": F.pad(tokens.frac_coords, (0, 0, 0, extra)),
        }
    )


@torch.no_grad()
def sample_plainly(
    policy: PublishedPolicy, n: int, condition: Condition, generator: torch.Generator
) -> Rollout:
    """Draw ``n`` crystals as the original does: 105 forward passes over 105 tokens.

    Masks and densities are the package's, so that the distribution is that of ``policy.sample``.
    """
    network, tables = policy.network, policy.tables
    group = condition.draw_space_groups(n, generator)
    wyckoff = torch.zeros(n, ROWS, dtype=torch.int64)
    species, coords = torch.zeros_like(wyckoff), torch.zeros(n, ROWS, 3)
    log_prob, n_atoms = torch.zeros(n, 2), torch.zeros(n, dtype=torch.int64)
    previous, running = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    elements = torch.from_numpy(condition.elements)
    only_none = torch.arange(len(elements)) == 0

    def forward() -> torch.Tensor:
        return network.output(network.trunk(group, wyckoff, species, coords))

    def draw(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        density = masked_log_softmax(
            logits, allowed, temperature=condition.temperature, top_p=condition.top_p
        )
        choice = categorical(density, generator)
        log_prob[:, 0] += density.gather(1, choice[:, None]).squeeze(1)
        return choice

    for site in range(ROWS):
        first = 5 * site
        output = forward()
        logits = network.first_letter_logits(group) if site == 0 else output[:, first - 1]
        allowed = policy._letters_allowed(group, previous, n_atoms, site, condition)
        allowed[~running] = only_none[:LETTERS]
        letter = draw(logits[:, :LETTERS], allowed)
        wyckoff[:, site], running = letter, letter > 0
        output = forward()
        allowed = torch.where(running[:, None], elements, only_none)
        species[:, site] = draw(output[:, first, : len(elements)], allowed)
        rotation, shift = tables.rotation[group, letter], tables.translation[group, letter]
        free = tables.free[group, letter] & running[:, None]
        xyz = coords[:, site]
        for axis in range(3):
            output = forward()
            tied = torch.remainder((rotation[:, axis] * xyz).sum(1) + shift[:, axis], 1.0)
            xyz[:, axis] = torch.where(running & (tied < 1.0), tied, 0.0)
            row = free[:, axis].nonzero().squeeze(1)
            raw = output[row, first + 1 + axis, : 3 * network.config.coordinate_components]
            sharpness = condition.coordinate_temperature
            value = sample_von_mises(raw, generator, temperature=sharpness)
            xyz[row, axis] = torch.where(value >= 1.0, 0.0, value)
            log_prob[row, 1] += von_mises_log_prob(raw, xyz[row, axis], temperature=sharpness)
        previous = letter
        n_atoms = n_atoms + tables.atoms[group, letter]
    stop = output[torch.arange(n), 5 * (wyckoff > 0).sum(1), len(elements) :]
    drawn = {
        "space_group": group,
        "wyckoff": wyckoff,
        "species": species,
        "frac_coords": coords,
        "lattice": stop[:, : network.config.lattice_width],
        "log_prob": log_prob,
    }
    tokens, batch, log_prob = policy._sample_lattice(drawn, condition, generator)
    return Rollout(batch, log_prob.sum(1), {"tokens": tokens, "condition": condition})
