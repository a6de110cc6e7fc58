"""Crystals a second: the sampler of a model against the original's procedure.

    python benchmarks/sampling.py [--model base]

The original draws each of 105 tokens from a full forward pass over 21 sites (105 tokens), caches
nothing and never stops early; here in PyTorch and float32, on the network of Table S1 with random
weights (``baseline_network`` says what else is in its favour). Its cost doesn't depend on what is
drawn and is linear in the crystals, so a few of them give its rate.

Both draw space groups from the training distribution, under the same masks. Processor time of one
thread, in one process, in turn. Printed above the last line: the same network with cached keys and
values and an early stop, against the same procedure.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch

from baseline_network import Cost, one_thread, published_policies, sample_plainly
from nucleate.policies.checkpoint import load_policy
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.protocols import Rollout
from nucleate.samples import default_condition

TOLERANCE = 1e-3  # nats


def timed(work: Callable[[], Rollout]) -> tuple[Cost, Rollout]:
    """A rollout and its cost."""
    start = time.process_time()
    rollout = work()
    return Cost(time.process_time() - start, len(rollout.batch)), rollout


def worst_difference(policy: WyckoffPolicy, rollout: Rollout) -> float:
    """Largest difference in nats between what was sampled and what the policy scores."""
    return float((policy.log_prob(rollout) - rollout.log_prob).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="base", help="a shipped model's name, or a folder")
    parser.add_argument("--count", type=int, default=4000, help="crystals of the model's sampler")
    parser.add_argument("--batch", type=int, default=1000, help="crystals it draws together")
    parser.add_argument("--published-count", type=int, default=256, help="with cached keys")
    parser.add_argument("--plain-count", type=int, default=10, help="a batch of the original's")
    parser.add_argument("--rounds", type=int, default=2, help="batches of the original's")
    options = parser.parse_args()
    one_thread()
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    model = load_policy(options.model)
    condition = default_condition(model)
    generator = torch.Generator().manual_seed(0)
    warm = model.sample(options.batch, condition, generator)
    published, padded = published_policies(warm.batch, condition)

    ours, theirs, same = Cost(0, 0), Cost(0, 0), Cost(0, 0)
    sites = {"model": [], "cached": []}
    for _ in range(options.rounds):
        cost, plain = timed(
            lambda: sample_plainly(padded, options.plain_count, condition, generator)
        )
        theirs += cost
        cost, cached = timed(
            lambda: published.sample(
                options.published_count // options.rounds, condition, generator
            )
        )
        same += cost
        sites["cached"].append(cached.batch.n_sites.mean())
        for _ in range(max(1, options.count // options.batch // options.rounds)):
            cost, drawn = timed(lambda: model.sample(options.batch, condition, generator))
            ours += cost
            sites["model"].append(drawn.batch.n_sites.mean())
    for name, policy, rollout in (
        ("the original's procedure", published, plain),
        ("cached keys and values", published, cached),
        (options.model, model, drawn),
    ):
        difference = worst_difference(policy, rollout)
        print(f"{name}: sampled and scored log-probability differ by {difference:.1e} nats")
        if not difference < TOLERANCE:
            raise SystemExit("what was sampled is not what is scored")
    mean = {name: sum(values) / len(values) for name, values in sites.items()}
    print(
        f"original's procedure, Table S1, float32: {theirs.rate:.4f} crystals/s "
        f"({theirs.crystals} crystals, {theirs.seconds:.1f} s, 105 x 105 tokens each)"
    )
    print(
        f"Table S1, cached keys and values, early stop: {same.rate:.2f} crystals/s "
        f"({same.crystals} crystals, {mean['cached']:.2f} sites on average)"
    )
    print(
        f"{options.model}: {ours.rate:.1f} crystals/s "
        f"({ours.crystals} crystals, {ours.seconds:.1f} s, batches of {options.batch}, "
        f"{mean['model']:.2f} sites on average)"
    )
    print(f"load average at the end {os.getloadavg()[0]:.1f}")
    print(f"same-network ratio: {same.rate / theirs.rate:.1f}")
    print(f"ratio: {ours.rate / theirs.rate:.1f}")


if __name__ == "__main__":
    main()
