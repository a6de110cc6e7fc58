"""Maximum-likelihood training of a Wyckoff policy on known crystals.

AdamW with linear warm-up and cosine decay, gradient clipping and an exponential moving average of
the weights. The loss is the negative log-likelihood in nats a crystal, of crystals with equal
numbers of sites, so that nothing is spent on padding. What keeps a large network from learning
69,565 crystals by heart:

* every crystal is shown in one canonical description of its origin and axes, so that nothing is
  spent on learning the equivalent ones (``setting: random`` shows them all instead);
* free coordinates and lattice parameters carry a little noise, drawn anew each time;
* dropout and weight decay; the average weights with the best validation loss are kept.

Each crystal comes with a stability class, known from its energy above hull. The network is
conditioned on it: it learns from all crystals, and samples from the class next to the hull.

All randomness follows from (seed, epoch, step), so that a resumed run equals an uninterrupted one.
Under ``torchrun`` every process takes its share of each batch (DistributedDataParallel).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nucleate.allocator import keep_memory
from nucleate.errors import CheckpointError, InputError, NucleateError
from nucleate.policies import lattice
from nucleate.policies.checkpoint import save_policy, write_atomic
from nucleate.policies.condition import Condition
from nucleate.policies.tokens import Tokens
from nucleate.policies.wyckoff import PARTS, WyckoffPolicy
from nucleate.structures import symmetry
from nucleate.structures.datasets import TokenDataset
from nucleate.structures.settings import canonical_setting, random_setting
from nucleate.structures.wyckoff import WyckoffBatch

STABILITY_EDGES = (0.025, 0.1, 0.25)
"""Upper edges of the stability classes 0, 1, 2 in eV/atom above hull; 3 is above, 4 unknown."""
UNKNOWN_STABILITY = 4

MOST_SKIPPED = 20
"""Steps in a row without a finite gradient, after which a training has failed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of a training run.

    Attributes:
        epochs: passes over the training crystals.
        batch_size: crystals in one step, over all processes.
        learning_rate: at the end of the warm-up.
        final_learning_rate: fraction of it at the end of the cosine.
        warmup_steps: linear warm-up.
        weight_decay: AdamW, matrices only.
        clip: largest norm of the gradient of each weight.
        ema: decay of the average of the weights, per step.
        coordinate_noise: standard deviation in fractions of a cell edge.
        lattice_noise: standard deviation in the units of ``policies.lattice``.
        setting: "canonical" shows every crystal in one of its equivalent descriptions (origin and
            axes), always the same; "random" in one drawn anew each time.
        precision: "float32" or "bfloat16" (mixed).
        validate_every: steps between validations and checkpoints.
        seed: of everything random.
    """

    epochs: float = 40.0
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.02
    warmup_steps: int = 400
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    coordinate_noise: float = 0.002
    lattice_noise: float = 0.003
    setting: str = "canonical"
    precision: str = "float32"
    validate_every: int = 500
    seed: int = 0


def stability_class(e_hull: np.ndarray) -> np.ndarray:
    """(N,) int64 classes of energies above hull (eV/atom); NaN is unknown."""
    known = np.searchsorted(STABILITY_EDGES, np.nan_to_num(e_hull, nan=9.0), side="right")
    return np.where(np.isnan(e_hull), UNKNOWN_STABILITY, known)


def stability_classes(dataset: TokenDataset) -> np.ndarray:
    """(N,) int64 classes of the crystals of a data set, by its label ``e_hull``."""
    if "e_hull" not in dataset.columns:
        return np.full(len(dataset), UNKNOWN_STABILITY)
    return stability_class(np.asarray(dataset.columns["e_hull"], dtype=np.float64))


def every_crystal() -> Condition:
    """Under which known crystals are scored: all space groups and elements, any size."""
    return Condition(np.r_[0.0, np.ones(230)], max_atoms=10_000)


@torch.no_grad()
def negative_log_likelihood(
    policy: WyckoffPolicy, dataset: TokenDataset, *, limit: int | None = None
) -> dict[str, float]:
    """Mean negative log-likelihood of known crystals, each under its own stability class.

    Args:
        policy: scored in evaluation mode.
        dataset: prepared tokens; taken in their canonical setting.
        limit: how many of them, the first rows; all by default.

    Returns:
        Nats a crystal by part, see ``policies.wyckoff.PARTS``.
    """
    policy.network.eval()
    classes, condition = stability_classes(dataset), every_crystal()
    rows = np.arange(min(len(dataset), limit or len(dataset)))
    rows = rows[np.argsort(dataset.n_sites[rows], kind="stable")]
    totals = torch.zeros(len(PARTS), dtype=torch.float64)
    for chunk in np.array_split(rows, max(1, len(rows) // 256)):
        batch = canonical_setting(dataset.rows(chunk))
        tokens = Tokens.from_batch(batch, stability=classes[chunk]).to(policy.device)
        totals += policy.log_prob_parts(tokens, condition).sum(0).double().cpu()
    return {name: -float(total) / len(rows) for name, total in zip(PARTS, totals, strict=True)}


def add_noise(
    batch: WyckoffBatch, rng: np.random.Generator, config: PretrainingConfig
) -> tuple[WyckoffBatch, np.ndarray]:
    """Jitter the free coordinates and lattice parameters; tied coordinates follow.

    Returns:
        The batch with new coordinates, and its (B, 6) lattice parameters with noise.
    """
    tables = symmetry.tables()
    group, letter = batch.space_group.astype(int)[:, None] - 1, batch.wyckoff.astype(int)
    free = tables.free[group, letter]
    noise = rng.normal(0, config.coordinate_noise, batch.frac_coords.shape) * free
    moved = batch.frac_coords + noise
    tied = (
        np.einsum("bsij,bsj->bsi", tables.first_rotation[group, letter], moved)
        + tables.first_translation[group, letter]
    )
    coords = np.where(free, moved, np.where(letter[..., None] > 0, tied, 0.0)) % 1.0
    coords = coords.astype(np.float32)
    coords[coords >= 1.0] = 0.0
    parameters = lattice.to_parameters(batch.lattice, batch.n_atoms)
    parameters += rng.normal(0, config.lattice_noise, parameters.shape)
    noisy = WyckoffBatch(batch.space_group, batch.wyckoff, batch.species, coords, batch.lattice)
    return noisy, parameters


def _n_movable(dataset: TokenDataset, *, chunk: int = 8192) -> np.ndarray:
    """(N,) int16, sites of each crystal that have a free coordinate."""
    tables = symmetry.tables()
    movable = (tables.dof > 0) & (tables.multiplicity > 0)
    counts = [
        movable[batch.space_group.astype(int)[:, None] - 1, batch.wyckoff.astype(int)].sum(1)
        for start in range(0, len(dataset), chunk)
        for batch in [dataset.rows(np.arange(start, min(start + chunk, len(dataset))))]
    ]
    return np.concatenate(counts).astype(np.int16)


class _Likelihood(nn.Module):
    """The loss as a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, policy: WyckoffPolicy, condition: Condition) -> None:
        super().__init__()
        self.network, self.policy, self.condition = policy.network, policy, condition

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """(B, 4) log-probabilities by part."""
        return self.policy.log_prob_parts(tokens, self.condition)


class Pretraining:
    """One training run in one folder.

    Args:
        policy: what is trained, in place.
        train, validation: prepared tokens with an optional ``e_hull`` column (eV/atom).
        folder: where ``train.jsonl``, the checkpoint and the best policy go.
        config: settings.
    """

    def __init__(
        self,
        policy: WyckoffPolicy,
        train: TokenDataset,
        validation: TokenDataset,
        folder: Path,
        config: PretrainingConfig,
    ) -> None:
        self.policy, self.train, self.validation = policy, train, validation
        self.folder, self.config = Path(folder), config
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.condition = every_crystal()
        network = policy.network
        decayed = [p for p in network.parameters() if p.ndim >= 2]
        others = [p for p in network.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.step, self.best, self.skipped_steps = 0, math.inf, 0
        self.steps_per_epoch = len(train) // config.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"{train.path} holds {len(train)} crystals, fewer than a batch of "
                f"{config.batch_size}",
                fix="prepare more crystals, or lower batch_size",
            )
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.n_movable = _n_movable(train)
        self.train_classes = stability_classes(train)

    # data ---------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Batches of one epoch, in random order, all of full size.

        The crystals of a batch have equal numbers of sites and of sites with free coordinates.
        """
        rng = np.random.default_rng([self.config.seed, 1, epoch])
        order = rng.permutation(len(self.train))
        order = order[np.lexsort((self.n_movable[order], self.train.n_sites[order]))]
        start = rng.integers(0, len(order) % self.config.batch_size + 1)
        stop = start + self.steps_per_epoch * self.config.batch_size
        batches = order[start:stop].reshape(self.steps_per_epoch, -1)
        return list(rng.permutation(batches))

    def _tokens(self, rows: np.ndarray, step: int) -> Tokens:
        """This process's share of a batch, augmented."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        batch = self.train.rows(rows)
        if self.config.setting == "random":
            batch = random_setting(batch, rng)
        else:
            batch = canonical_setting(batch)
        batch, parameters = add_noise(batch, rng, self.config)
        share = slice(self.rank, None, self.world)
        classes = self.train_classes[rows]
        return Tokens.from_batch(
            batch[share], stability=classes[share], parameters=parameters[share]
        )

    def _batches(self) -> Iterator[np.ndarray]:
        """Batches from the current step to the last."""
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            for rows in self._epoch(epoch)[done:]:
                if self.step >= self.total_steps:
                    return
                yield rows

    # training -----------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine to ``final_learning_rate``."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        span = max(1, self.total_steps - config.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / span)))
        floor = config.final_learning_rate
        return config.learning_rate * (floor + (1 - floor) * cosine)

    def run(self, on_step: Callable[[dict[str, float]], None] | None = None) -> dict[str, float]:
        """Train to the end, from wherever the run stands.

        A step whose gradient is not finite leaves the weights as they are and is counted in the
        metrics as one of the ``skipped_steps``.

        Returns:
            The last validation: nats a crystal in all and by part.

        Raises:
            NucleateError: too many steps in a row had no finite gradient.
        """
        keep_memory()
        likelihood: nn.Module = _Likelihood(self.policy, self.condition)
        if self.world > 1:
            likelihood = nn.parallel.DistributedDataParallel(likelihood)
        device = self.policy.device
        result: dict[str, float] = {}
        started, seen, skipped_in_a_row = time.monotonic(), 0, 0
        for rows in self._batches():
            tokens = self._tokens(rows, self.step).to(device)
            torch.manual_seed(hash((self.config.seed, 3, self.step, self.rank)) % 2**31)
            self.policy.network.train()
            with torch.autocast(
                device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
            ):
                parts = likelihood(tokens)
            loss = -parts.sum(1).mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = self._clip_gradients()
            for group in self.optimiser.param_groups:
                group["lr"] = self.learning_rate(self.step)
            if torch.isfinite(norm):
                self.optimiser.step()
                skipped_in_a_row = 0
            else:
                self.skipped_steps += 1
                skipped_in_a_row += 1
                if skipped_in_a_row == MOST_SKIPPED:
                    raise self._diverged()
            self._update_average()
            self.step += 1
            seen += len(rows)
            metrics = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "loss": self._mean(loss.detach()),
                "gradient_norm": float(norm),
                "skipped_steps": self.skipped_steps,
                "crystals_per_second": seen / (time.monotonic() - started),
            }
            if self.step % self.config.validate_every == 0 or self.step == self.total_steps:
                result = self.validate()
                metrics |= result
                self._finish_interval(metrics)
            if on_step is not None and self.rank == 0:
                on_step(metrics)
        return result

    def _diverged(self) -> NucleateError:
        return NucleateError(
            f"the training in {self.folder} has diverged at step {self.step}",
            f"the gradient was not finite in {MOST_SKIPPED} steps in a row",
            "go on from the last checkpoint with a lower learning_rate or in float32; if it fails "
            "at once, look at the data",
        )

    def _clip_gradients(self) -> torch.Tensor:
        """Clip the gradient of each weight to norm ``clip`` on its own; returns the whole norm.

        The density of a lattice is so sharp that its head's gradient is a hundred times that of
        the rest; clipped together, the rest would hardly move in such steps.
        """
        weights = self.policy.network.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        factors = (self.config.clip / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors))
        return norms.norm()

    def _mean(self, value: torch.Tensor) -> float:
        if self.world > 1:
            torch.distributed.all_reduce(value)
            value = value / self.world
        return float(value)

    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        current = self.policy.network.state_dict()
        update = get_ema_multi_avg_fn(decay)
        update([self.average[name] for name in current], list(current.values()), self.step)

    # validation ---------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, *, limit: int = 3000) -> dict[str, float]:
        """Negative log-likelihood of validation crystals under the average weights.

        Crystals count under their own stability class; nats a crystal, the first ``limit`` rows.
        """
        network = self.policy.network
        current = {k: v.detach().clone() for k, v in network.state_dict().items()}
        network.load_state_dict(self.average)
        parts = negative_log_likelihood(self.policy, self.validation, limit=limit)
        network.load_state_dict(current)
        named = {f"validation_{name}": value for name, value in parts.items()}
        return {"validation": sum(parts.values())} | named

    # checkpoints --------------------------------------------------------------------------

    def _finish_interval(self, metrics: dict[str, float]) -> None:
        """Log, keep the best average weights, checkpoint."""
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "train.jsonl").open("a") as stream:
                stream.write(json.dumps(metrics) + "\n")
            if metrics["validation"] < self.best:
                self.best = metrics["validation"]
                self._save_average(self.folder / "best")
            self._save_average(self.folder / "last")
            self.save()
        if self.world > 1:
            torch.distributed.barrier()

    def _save_average(self, folder: Path) -> None:
        current = {k: v.detach().clone() for k, v in self.policy.network.state_dict().items()}
        self.policy.network.load_state_dict(self.average)
        save_policy(self.policy, folder)
        self.policy.network.load_state_dict(current)

    def save(self) -> None:
        """Write the checkpoint that :meth:`resume` reads, atomically."""
        network = self.policy.network
        tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
        tensors |= {f"average.{k}": v.contiguous() for k, v in self.average.items()}
        state = self.optimiser.state_dict()
        for index, entry in state["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v.contiguous() for k, v in entry.items()}
        meta = {
            "step": self.step,
            "best": self.best,
            "skipped_steps": self.skipped_steps,
            "config": asdict(self.config),
        }
        path = self.folder / "checkpoint.safetensors"
        write_atomic(
            path, lambda part: save_file(tensors, part, metadata={"nucleate": json.dumps(meta)})
        )

    def resume(self) -> None:
        """Continue from the folder's checkpoint; the settings may differ from then on.

        Raises:
            CheckpointError: there is none, or it is not whole.
        """
        path = self.folder / "checkpoint.safetensors"
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as stream:
                meta = json.loads(stream.metadata()["nucleate"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"can't continue from the checkpoint {path}",
                f"it is missing, truncated or no checkpoint of a training run ({error})",
                "start the training again, in another folder",
            ) from error
        self._forget_log(meta["step"])
        self.step, self.best = meta["step"], meta["best"]
        self.skipped_steps = meta.get("skipped_steps", 0)
        network = {k[8:]: v for k, v in tensors.items() if k.startswith("network.")}
        self.policy.network.load_state_dict(network)
        self.average = {
            k[8:]: v.to(self.policy.device) for k, v in tensors.items() if k.startswith("average.")
        }
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        restored = self.optimiser.state_dict()
        restored["state"] = state
        self.optimiser.load_state_dict(restored)

    def _forget_log(self, step: int) -> None:
        """Drop what ``train.jsonl`` holds after a step, and a last line cut short."""
        path = self.folder / "train.jsonl"
        if self.rank or not path.is_file():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["step"] <= step:
                kept.append(line + "\n")
        write_atomic(path, lambda part: part.write_text("".join(kept)))
