"""How fast two networks learn: nats a validation crystal against processor time in training.

    python benchmarks/pretraining_curve.py TRAIN VALIDATION --seconds 3600

TRAIN and VALIDATION are folders made by ``nucleate data prepare``. The default network and the
published one (Table S1 of arXiv:2504.02367) are trained one after the other, from random weights,
by the same code on the same crystals in the same descriptions, each for ``--seconds`` of processor
time of one thread. Reading, augmentation and the average of the weights count, validation doesn't.
The learning rate rises over the first twentieth of the time and falls by a cosine to its end, for
both alike. Other settings are those of ``nucleate pretrain``; ``--site`` and ``--published`` change
them for one network, such as ``--published batch_size=100 learning_rate=0.0003``.

The nats are of one measure, so that they can be compared in all and by part: both networks draw
the same letters, species, free coordinates (densities over angles in radians) and free lattice
parameters (densities over the numbers of ``nucleate.policies.lattice``), under the same masks. The
default network is told the stability class of a crystal; the published one has no input for it.
Contacts are computed for both, though only the default network reads them, which is under 2 % of
the published one's time.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

import torch

from arguments import existing
from baseline_network import one_thread
from nucleate.policies.checkpoint import build_policy
from nucleate.policies.pretraining import Pretraining
from nucleate.policies.published import PublishedConfig
from nucleate.policies.site_transformer import SiteTransformerConfig
from nucleate.policies.wyckoff import PARTS
from nucleate.structures.datasets import TokenDataset
from nucleate.training import PretrainingSettings, load_pretraining_settings

NETWORKS = {"site": SiteTransformerConfig, "published": PublishedConfig}
WARM_UP = 0.05
"""Share of the time in which the learning rate rises."""


class StopTraining(Exception):  # noqa: N818
    """Leaves the training loop; no error."""


class TimedPretraining(Pretraining):
    """A training that ends after some processor time, with a learning rate that knows when."""

    seconds = math.inf
    spent = 0.0

    def learning_rate(self, step: int) -> float:
        """Rises, then falls by a cosine, over the time."""
        share = min(1.0, self.spent / self.seconds)
        if share < WARM_UP:
            return self.config.learning_rate * max(share / WARM_UP, 0.01)
        cosine = 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
        floor = self.config.final_learning_rate
        return self.config.learning_rate * (floor + (1 - floor) * cosine)

    def curve(self, seconds: float, points: int, limit: int) -> list[dict[str, float]]:
        """Train; a row for each validation, the last when the time is over.

        Args:
            seconds: of this process.
            points: validations, each after twice the time of the one before.
            limit: validation crystals.
        """
        self.seconds = seconds
        marks = [seconds / 2**k for k in reversed(range(points))]
        rows: list[dict[str, float]] = []
        mark, last = marks[0], time.process_time()

        def on_step(metrics: dict[str, float]) -> None:
            nonlocal mark, last
            self.spent += time.process_time() - last
            if self.spent >= mark:
                found = self.validate(limit=limit)
                rows.append({"seconds": self.spent, **metrics, **found})
                print(row_text(rows[-1]), flush=True)
                if self.spent >= seconds:
                    raise StopTraining
                mark = next(later for later in marks if later > self.spent)
            last = time.process_time()

        with contextlib.suppress(StopTraining):
            self.run(on_step)
        return rows


def trained(
    name: str, settings: PretrainingSettings, train: TokenDataset, validation: TokenDataset
) -> TimedPretraining:
    """A training that has not begun."""
    torch.manual_seed(settings.seed)
    config = NETWORKS[name](**settings.network)
    policy = build_policy({"network": config.network, "config": config.to_dict(), "metadata": {}})
    size = sum(parameter.numel() for parameter in policy.network.parameters())
    print(
        f"\n{name}: {size / 1e6:.2f} million weights, batches of {settings.batch_size}, "
        f"learning rate {settings.learning_rate:g}, {settings.precision}"
    )
    endless = replace(settings.config(), epochs=1e6, validate_every=10**9)
    return TimedPretraining(policy, train, validation, Path(gettempdir()), endless)


def row_text(row: dict[str, float]) -> str:
    """A line of the table."""
    parts = " ".join(f"{row[f'validation_{part}']:11.3f}" for part in PARTS)
    return (
        f"{row['seconds']:9.1f} {row['step']:8.0f} {row['epoch']:8.3f} "
        f"{row['validation']:9.3f} {parts}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=existing, help="prepared crystals to learn from")
    parser.add_argument("validation", type=existing, help="prepared crystals of other formulas")
    parser.add_argument("--seconds", type=float, default=3600.0, help="processor time of each")
    parser.add_argument("--points", type=int, default=6, help="validations of each")
    parser.add_argument("--limit", type=int, default=1000, help="validation crystals")
    for name in NETWORKS:
        parser.add_argument(
            f"--{name}", nargs="*", default=[], metavar="KEY=VALUE", help="settings of its training"
        )
    options = parser.parse_args()
    settings = {name: load_pretraining_settings(None, getattr(options, name)) for name in NETWORKS}
    train, validation = TokenDataset.open(options.train), TokenDataset.open(options.validation)
    one_thread()
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    print(f"{len(train):,} crystals to learn from, nats a crystal of {options.limit:,} others")
    last = {}
    for name in NETWORKS:
        run = trained(name, settings[name], train, validation)
        heads = " ".join(f"{part:>11}" for part in PARTS)
        print(f"{'seconds':>9} {'step':>8} {'epoch':>8} {'total':>9} {heads}")
        last[name] = run.curve(options.seconds, options.points, options.limit)[-1]
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")
    ours, theirs = last["site"], last["published"]
    parts = ", ".join(
        f"{part} {theirs[f'validation_{part}'] - ours[f'validation_{part}']:+.2f}" for part in PARTS
    )
    print(
        f"after {options.seconds:g} s each: site {ours['validation']:.2f}, published "
        f"{theirs['validation']:.2f} nats a crystal; published less site "
        f"{theirs['validation'] - ours['validation']:+.2f} ({parts})"
    )


if __name__ == "__main__":
    main()
