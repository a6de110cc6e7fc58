"""Crystals a second in training: the shipped network and settings against the original's procedure.

    python benchmarks/training.py --crystals CRYSTALS

The original pads every crystal to 21 sites (105 tokens) and takes 100 in a batch; here in PyTorch
as it comes, float32, on the network of Table S1 with its dropout. The package batches crystals
with equal numbers of sites. Both get the same crystals; a step is the batch's assembly into
tensors, forward, backward, clipping and Adam. For the package it is the step of ``nucleate
pretrain`` as it is, with augmentation, noise, contacts and the average of the weights.

Everything is measured in a process of its own, after it has warmed up. What a padded crystal costs
does not depend on the crystal; where batches go by the number of sites it does, so that there the
package is timed over whole passes, and Table S1 over batches spread evenly from the smallest
crystals to the largest. Processor time of one thread, the system's included.

Printed above the last line: Table S1 on batches by number of sites against Table S1 padded; the
package in float32; and both ratios with freed memory kept by the padded process too. The package
keeps it (``nucleate.allocator``), PyTorch does not: at this size most of its tensors are new pages
in every step, and what those cost depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch

from arguments import existing
from baseline_network import ROWS, Cost, padded_to, published_policies
from nucleate.allocator import keep_memory
from nucleate.policies.checkpoint import build_policy, load_policy
from nucleate.policies.condition import Condition
from nucleate.policies.pretraining import Pretraining, PretrainingConfig
from nucleate.policies.published_policy import PublishedPolicy
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.samples import default_condition
from nucleate.structures.io import read
from nucleate.structures.wyckoff import WyckoffBatch, encode

PUBLISHED_BATCH = 100
WARM_UP_STEPS = 2  # until memory that is kept is there
FEWEST = 1000
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


def train_shipped(batch: WyckoffBatch, card: dict, precision: str) -> Cost:
    """The second pass of the package's pretraining over all crystals, from random weights."""
    torch.set_num_threads(1)
    policy, crystals = build_policy(card), Crystals(batch)
    config = PretrainingConfig(precision=precision)
    folder = Path(gettempdir())  # where no step writes
    endless = replace(config, epochs=1e6, validate_every=10**9)
    run = Pretraining(policy, crystals, crystals, folder, endless)  # type: ignore[arg-type]
    seconds: list[float] = []
    last = [time.process_time()]

    def on_step(_: dict[str, float]) -> None:
        now = time.process_time()
        seconds.append(now - last[0])
        last[0] = now
        if len(seconds) == 2 * run.steps_per_epoch:
            raise StopTraining

    with contextlib.suppress(StopTraining):
        run.run(on_step)
    return Cost(sum(seconds[run.steps_per_epoch :]), run.steps_per_epoch * config.batch_size)


def train_published(
    policy: PublishedPolicy,
    batch: WyckoffBatch,
    batches: Sequence[np.ndarray],
    rows: int | None,
    keep: bool = False,
) -> Cost:
    """One step for each of some batches: likelihood, gradient, clipping of its norm, Adam.

    Args:
        policy: what is trained.
        batch: all crystals.
        batches: which of them each step takes; the first ones warm up and do not count.
        rows: rows of sites that crystals are padded to; None leaves them as they are.
        keep: keep freed memory, as the package does.
    """
    torch.set_num_threads(1)
    if keep:
        keep_memory()
    network, condition = policy.network, Condition(np.r_[0.0, np.ones(230)], max_atoms=10_000)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    crystals = Crystals(batch)
    network.train()
    seconds = []
    for index in batches:
        start = time.process_time()
        tokens = policy.tokens_of(crystals.rows(index))
        if rows is not None:
            tokens = padded_to(tokens, rows)
        loss = -policy.log_prob_parts(tokens, condition).sum(1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        seconds.append(time.process_time() - start)
    return Cost(sum(seconds[WARM_UP_STEPS:]), sum(len(index) for index in batches[WARM_UP_STEPS:]))


def alone(function: Callable[..., Cost], *arguments: Any) -> Cost:
    """What a function measures in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def told(what: str, cost: Cost, batch_size: int) -> None:
    """Print what was measured."""
    steps = cost.crystals // batch_size
    print(f"{what}: {cost.rate:.3g} crystals/s ({steps} steps)", flush=True)


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
    parser.add_argument("--published-steps", type=int, default=20, help="of Table S1, by sites")
    parser.add_argument("--padded-steps", type=int, default=2, help="of Table S1, padded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    model: WyckoffPolicy = load_policy(options.model)
    config = model.network.config
    card = {"network": config.network, "config": config.to_dict(), "metadata": model.metadata}
    batch = real_crystals(options.crystals, options.count)
    if len(batch) < FEWEST:
        parser.error(f"{len(batch)} crystals can be used, of at least {FEWEST}: name more of them")
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
    buckets = by_sites[:whole].reshape(-1, PUBLISHED_BATCH)
    mixed = order[:whole].reshape(-1, PUBLISHED_BATCH)
    n_buckets = min(options.published_steps, len(buckets))
    spread = ((np.arange(n_buckets) + 0.5) * len(buckets) / n_buckets).astype(int)
    shipped = model.metadata.get("training", {}).get("precision", "bfloat16")
    chosen = mixed[: WARM_UP_STEPS + options.padded_steps]
    theirs = alone(train_published, padded, batch, chosen, ROWS)
    told(f"Table S1 padded to {ROWS} sites, batch 100", theirs, PUBLISHED_BATCH)
    kept = alone(train_published, padded, batch, chosen, ROWS, True)
    told(f"Table S1 padded to {ROWS} sites, batch 100, memory kept", kept, PUBLISHED_BATCH)
    chosen = buckets[np.r_[[-1] * WARM_UP_STEPS, spread]]
    same = alone(train_published, bucketed, batch, chosen, None)
    told("Table S1 on batches of 100 by number of sites", same, PUBLISHED_BATCH)
    ours = {}
    for precision in ("float32", "bfloat16"):
        ours[precision] = alone(train_shipped, batch, card, precision)
        told(
            f"shipped network, {precision}, batches of 256 by number of sites", ours[precision], 256
        )
    print(f"load average at the end {os.getloadavg()[0]:.1f}")
    print(f"same-network ratio: {same.rate / theirs.rate:.1f}")
    print(f"float32 ratio: {ours['float32'].rate / theirs.rate:.1f}")
    print(
        f"with memory kept by both: float32 {ours['float32'].rate / kept.rate:.1f}, "
        f"{shipped} {ours[shipped].rate / kept.rate:.1f}"
    )
    print(f"ratio: {ours[shipped].rate / theirs.rate:.1f}")


if __name__ == "__main__":
    main()
