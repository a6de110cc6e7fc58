"""Crystals a second in training: the shipped network and settings against the original's procedure.

    python benchmarks/training.py --crystals CRYSTALS

The original pads every crystal to 21 sites (105 tokens) and takes 100 in a batch; here in PyTorch,
float32, on the network of Table S1. The package batches crystals with equal numbers of sites. Both
get the same crystals; a step is the batch's assembly into tensors, forward, backward, clipping and
Adam. For the package it is the step of ``nucleate pretrain`` as it is, with augmentation, noise,
contacts and the average of the weights. Processor time of one thread, in one process.

Printed above the last line: Table S1 on batches by number of sites against Table S1 padded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch

from arguments import existing
from baseline_network import Cost, one_thread, padded_to, published_policies
from nucleate.design import default_condition
from nucleate.policies.checkpoint import build_policy, load_policy
from nucleate.policies.condition import Condition
from nucleate.policies.pretraining import Pretraining, PretrainingConfig
from nucleate.policies.published_policy import PublishedPolicy
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.structures.io import read
from nucleate.structures.wyckoff import WyckoffBatch, encode

PUBLISHED_BATCH = 100
MAX_SITES = 20


class StopTraining(Exception):  # noqa: N818
    """Leaves the training loop; no error."""


class Crystals:
    """Crystals in memory, as the training reads them from a prepared folder."""

    def __init__(self, batch: WyckoffBatch) -> None:
        self.batch, self.n_sites, self.space_group = batch, batch.n_sites, batch.space_group
        self.columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.batch)

    def rows(self, indices: np.ndarray) -> WyckoffBatch:
        """Tokens of some crystals, padded to the longest of them."""
        chosen = self.batch[indices]
        return chosen.padded(int(chosen.n_sites.max()))


def real_crystals(path: Path, count: int) -> WyckoffBatch:
    """The first crystals of a file that the network can hold."""
    records = islice(read(path, strict=False), count)
    batch, reasons = encode([r.structure for r in records if r.structure is not None])
    kept = np.array([not reason for reason in reasons]) & (batch.n_sites <= MAX_SITES)
    return batch[kept].padded(MAX_SITES)


def train_shipped(crystals: Crystals, card: dict, precision: str, steps: int) -> Cost:
    """``steps`` steps of the package's pretraining, from random weights, after two to warm up."""
    policy = build_policy(card)
    config = PretrainingConfig(precision=precision)
    folder = Path(gettempdir())  # where no step writes
    run = Pretraining(policy, crystals, crystals, folder, replace(config, epochs=10_000.0))  # type: ignore[arg-type]
    seconds: list[float] = []
    last = [time.process_time()]

    def on_step(_: dict[str, float]) -> None:
        now = time.process_time()
        seconds.append(now - last[0])
        last[0] = now
        if len(seconds) == steps + 2:
            raise StopTraining

    with contextlib.suppress(StopTraining):
        run.run(on_step)
    return Cost(sum(seconds[2:]), steps * config.batch_size)


def train_published(
    policy: PublishedPolicy, crystals: Crystals, batches: Sequence[np.ndarray], rows: int | None
) -> Cost:
    """One step for each batch: likelihood, gradient, clipping of its norm, Adam."""
    network, condition = policy.network, Condition(np.r_[0.0, np.ones(230)], max_atoms=10_000)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    network.train()
    start = time.process_time()
    for index in batches:
        tokens = policy.tokens_of(crystals.rows(index))
        if rows is not None:
            tokens = padded_to(tokens, rows)
        loss = -policy.log_prob_parts(tokens, condition).sum(1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    seconds = time.process_time() - start
    network.eval()
    return Cost(seconds, sum(len(index) for index in batches))


def loss_difference(
    bucketed: PublishedPolicy, padded: PublishedPolicy, crystals: Crystals
) -> float:
    """Largest difference (nats) that padding makes to the likelihood of some crystals."""
    condition = Condition(np.r_[0.0, np.ones(230)], max_atoms=10_000)
    with torch.no_grad():
        tokens = bucketed.tokens_of(crystals.rows(np.arange(16)))
        first = bucketed.log_prob_parts(tokens, condition)
        second = padded.log_prob_parts(padded_to(tokens), condition)
    return float((first - second).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="base", help="whose network is trained, from scratch")
    parser.add_argument(
        "--crystals", type=existing, required=True, help="file of crystals in any format"
    )
    parser.add_argument("--count", type=int, default=6000, help="crystals")
    parser.add_argument("--rounds", type=int, default=2, help="in each, all take turns")
    parser.add_argument("--steps", type=int, default=20, help="of the shipped network")
    parser.add_argument("--published-steps", type=int, default=10, help="of Table S1, by sites")
    parser.add_argument("--padded-steps", type=int, default=1, help="of Table S1, padded")
    options = parser.parse_args()
    one_thread()
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    model: WyckoffPolicy = load_policy(options.model)
    config = model.network.config
    card = {"network": config.network, "config": config.to_dict(), "metadata": model.metadata}
    batch = real_crystals(options.crystals, options.count)
    crystals = Crystals(batch)
    print(
        f"{len(crystals)} crystals ({options.crystals.name}), "
        f"{crystals.n_sites.mean():.2f} sites on average"
    )

    bucketed, padded = published_policies(batch, default_condition(model))
    difference = loss_difference(bucketed, padded, crystals)
    print(f"Table S1: padding changes log-probabilities by at most {difference:.1e} nats")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(crystals))
    by_sites = order[np.argsort(crystals.n_sites[order], kind="stable")]
    whole = len(order) // PUBLISHED_BATCH * PUBLISHED_BATCH
    buckets = rng.permutation(by_sites[:whole].reshape(-1, PUBLISHED_BATCH))
    mixed = order[:whole].reshape(-1, PUBLISHED_BATCH)
    train_published(bucketed, crystals, buckets[-1:], None)  # warm-up
    shipped = model.metadata.get("training", {}).get("precision", "bfloat16")
    theirs, same = Cost(0, 0), Cost(0, 0)
    ours = {precision: Cost(0, 0) for precision in ("float32", "bfloat16")}
    for i in range(options.rounds):
        chosen = mixed[i * options.padded_steps : (i + 1) * options.padded_steps]
        theirs += train_published(padded, crystals, chosen, 21)
        for precision in ours:
            ours[precision] += train_shipped(crystals, card, precision, options.steps)
        chosen = buckets[i * options.published_steps : (i + 1) * options.published_steps]
        same += train_published(bucketed, crystals, chosen, None)
    print(
        f"Table S1 padded to 21 sites, batch 100: {theirs.rate:.2f} crystals/s "
        f"({theirs.crystals // PUBLISHED_BATCH} steps)"
    )
    print(
        f"Table S1 on batches of 100 by number of sites: {same.rate:.1f} crystals/s "
        f"({same.crystals // PUBLISHED_BATCH} steps)"
    )
    for precision, cost in ours.items():
        print(
            f"shipped network, {precision}, batches of 256 by number of sites: "
            f"{cost.rate:.1f} crystals/s ({cost.crystals // 256} steps)"
        )
    print(f"load average at the end {os.getloadavg()[0]:.1f}")
    print(f"same-network ratio: {same.rate / theirs.rate:.1f}")
    print(f"float32 ratio: {ours['float32'].rate / theirs.rate:.1f}")
    print(f"ratio: {ours[shipped].rate / theirs.rate:.1f}")


if __name__ == "__main__":
    main()
