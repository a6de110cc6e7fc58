"""Training a predictor: table, features, heads, metrics, card.

The loss is the L1 distance of standardised values; for a tensor the mean Frobenius norm of the
difference of the traceless parts is added, which unlike the L1 distance of components doesn't
depend on the axes; for a probability it is the cross entropy. Heads differ in their initial weights
and in the order of the crystals. Each keeps the weights whose values fit the validation crystals
best; the test crystals are looked at once, after the last head.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from nucleate.config import Settings, option
from nucleate.errors import InputError
from nucleate.physics.chgnet import N_ELEMENTS
from nucleate.predictors.checkpoint import CARD, halved, save_predictor
from nucleate.predictors.evaluation import metrics
from nucleate.predictors.features import CrystalFeatures, FeatureBatch, frozen_chgnet
from nucleate.predictors.head import Head, HeadConfig
from nucleate.predictors.predictor import (
    LEAST_SEEN,
    Predictor,
    Standardisation,
)
from nucleate.predictors.tables import LabelledCrystals, Target, read_labelled, split

FRACTIONS = (0.8, 0.1, 0.1)  # training, validation, test
FEATURES_AT_ONCE = 500  # crystals
LARGEST_GRADIENT = 1.0  # norm, of all weights of a head together
WARM_UP = 0.1  # of all steps
SMALLEST_RANGE = 1e-9  # of labels, in units of the largest
_PACKAGES = ("nucleate", "chgnet", "torch", "numpy", "pymatgen")


class PredictorSettings(Settings):
    """Settings of a training."""

    heads: int = option(5, "trained independently; their spread is the uncertainty", ge=1, le=50)
    width: int = option(128, "of the hidden layers", ge=4, le=1024)
    embedding: int = option(16, "numbers that describe an element", ge=1, le=256)
    dropout: float = option(0.1, "part of the hidden numbers left out in training", ge=0, lt=1)
    epochs: int = option(60, "most passes over the training crystals", ge=1)
    patience: int = option(20, "epochs without a better validation before a head stops", ge=1)
    batch_size: int = option(64, "crystals in one step", "crystals", ge=1)
    learning_rate: float = option(1e-3, "largest; it rises at first and falls to zero", gt=0, le=1)
    weight_decay: float = option(1e-2, "AdamW", ge=0)
    seed: int = option(0, "of split, initial weights and order", ge=0, lt=2**31)


@dataclass(frozen=True)
class Epoch:
    """Progress of a training.

    Attributes:
        head: counted from 1.
        epoch: counted from 1.
        loss: mean over the epoch.
        validation: what the best weights are chosen by, in the unit of the target.
        best: whether it is the lowest so far.
    """

    head: int
    epoch: int
    loss: float
    validation: float
    best: bool


class Examples(NamedTuple):
    """Crystals with features, and their labels.

    Attributes:
        features: of N crystals.
        labels: the crystals themselves with labels, in the same order.
    """

    features: list[CrystalFeatures]
    labels: LabelledCrystals


def train_predictor(
    table: str | Path,
    out: str | Path,
    target: Target,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    split_by: Literal["formula", "random"] = "formula",
    settings: PredictorSettings | None = None,
    about: dict[str, str] | None = None,
    command: Sequence[str] | None = None,
    on_features: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Predictor:
    """Train heads on a table, measure them, and write the predictor into a folder.

    Args:
        table: labelled crystals, see :func:`~nucleate.predictors.tables.read_labelled`.
        out: folder to write.
        target: what is predicted.
        validation: table that decides when to stop; a tenth of ``table`` by default.
        test: table that is measured at the end; a tenth of ``table`` by default.
        split_by: how ``table`` is divided where a table is missing.
        settings: of the training.
        about: for the card, such as licence and attribution of the data.
        command: for the card; this process's own by default.
        on_features: called with how many crystals of how many have features.
        on_epoch: called after each epoch.

    Raises:
        InputError: a table can't be used, a part is empty, labels don't vary or have no logarithm,
            or the folder holds a predictor already.
    """
    settings, out = settings or PredictorSettings(), Path(out)
    if (out / CARD).exists():
        raise InputError(
            f"{out} holds a predictor already.", fix="Name another folder, or remove that one."
        )
    own = {"training": table, "validation": validation, "test": test}
    parts = _parts(table, target, validation, test, split_by, settings.seed)
    standardisation = _standardisation(parts["training"], target)
    examples = _examples(parts, target.kind == "tensor", on_features)
    heads = []
    for number in range(settings.heads):
        seen = (examples["training"], examples["validation"])
        head = fit_head(*seen, target, standardisation, settings, number, on_epoch)
        heads.append(halved(head))
    counts = _element_counts(examples["training"].labels)
    predictor = Predictor(target, heads, standardisation, counts, {})
    predictor.card = {
        **(about or {}),
        "crystals": {name: len(part.labels) for name, part in examples.items()},
        "labels": _range(examples["training"].labels.value),
        "metrics": {name: _measured(predictor, examples[name]) for name in ("validation", "test")},
        "tables": {
            name: {"files": dict(parts[name].files), "left_out": dict(parts[name].left_out)}
            for name, source in own.items()
            if source is not None
        },
        "unreadable": {name: len(parts[name]) - len(examples[name].labels) for name in parts},
        "split": {"by": split_by, "seed": settings.seed},
        "settings": settings.model_dump(mode="json"),
        "versions": _versions(),
        "command": list(sys.argv if command is None else command),
    }
    save_predictor(predictor, out)
    return predictor


def fit_head(
    training: Examples,
    validation: Examples,
    target: Target,
    standardisation: Standardisation,
    settings: PredictorSettings,
    number: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Head:
    """Train one head.

    Args:
        training: to learn from.
        validation: to choose the weights by.
        target: what is predicted.
        standardisation: of the labels.
        settings: of the training.
        number: of the head, which with the seed decides all that is random.
        on_epoch: called after each epoch.

    Returns:
        The head with the weights of its best epoch, in evaluation mode.
    """
    generator = np.random.default_rng([settings.seed, number])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**31)))
        config = HeadConfig(
            target.kind == "tensor", settings.width, settings.embedding, settings.dropout
        )
        head = Head(config)
        head.standardise(FeatureBatch.of(training.features))
        n_steps = math.ceil(len(training.features) / settings.batch_size)
        optimiser = torch.optim.AdamW(
            head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, settings.learning_rate, settings.epochs * n_steps + 1, pct_start=WARM_UP
        )
        value, traceless = _standardised(training.labels, target, standardisation)
        best, best_state, best_epoch = math.inf, head.state_dict(), 0
        for epoch in range(1, settings.epochs + 1):
            head.train()
            total = 0.0
            for rows in np.array_split(generator.permutation(len(value)), n_steps):
                batch = FeatureBatch.of([training.features[i] for i in rows])
                loss = _loss(head(batch), value[rows], traceless[rows], target)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), LARGEST_GRADIENT)
                optimiser.step()
                schedule.step()
                total += loss.item() * len(rows)
            judged = _validate(head, validation, target, standardisation)
            if better := judged < best:
                best, best_epoch = judged, epoch
                best_state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
            if on_epoch is not None:
                on_epoch(Epoch(number + 1, epoch, total / len(value), judged, better))
            if epoch - best_epoch >= settings.patience:
                break
    head.load_state_dict(best_state)
    return head.eval()


def _loss(
    predicted: tuple[torch.Tensor, torch.Tensor | None],
    value: torch.Tensor,
    traceless: torch.Tensor,
    target: Target,
) -> torch.Tensor:
    """Loss of standardised predictions; see the head of this module."""
    if target.kind == "probability":
        return F.binary_cross_entropy_with_logits(predicted[0], value)
    loss = (predicted[0] - value).abs().mean()
    known = torch.isfinite(traceless[:, 0])
    if predicted[1] is not None and known.any():
        loss = loss + _norm(predicted[1][known] - traceless[known]).mean()
    return loss


def _norm(components: torch.Tensor) -> torch.Tensor:
    """(n,) Frobenius norms of symmetric tensors (n, 6), smooth at zero."""
    twice = components.new_tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    return ((components**2 * twice).sum(1) + 1e-8).sqrt()


def _validate(
    head: Head,
    examples: Examples,
    target: Target,
    standardisation: Standardisation,
) -> float:
    """Mean absolute error in the target's unit, or the log loss."""
    every = dict.fromkeys(range(N_ELEMENTS + 1), LEAST_SEEN)
    measured = _measured(Predictor(target, [head.eval()], standardisation, every, {}), examples)
    return measured["log_loss" if target.kind == "probability" else "mae"]


def _measured(predictor: Predictor, examples: Examples) -> dict[str, float | int]:
    """Metrics on crystals with features."""
    target = predictor.target
    predicted = predictor.of_features(examples.features, tensor=target.kind == "tensor")
    return metrics(predicted, examples.labels, target.kind)


def _range(values: np.ndarray) -> dict[str, float]:
    """Where labels lie."""
    least, median, largest = np.quantile(values, (0, 0.5, 1)).tolist()
    return {"least": least, "median": median, "largest": largest}


def _standardised(
    crystals: LabelledCrystals, target: Target, standardisation: Standardisation
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) and (N, 6) labels as a head gives them."""
    value = crystals.value
    if target.kind != "probability":
        value = np.log(value) if target.scale == "log" else value
        value = (value - standardisation.mean) / standardisation.scale
    traceless = crystals.traceless / standardisation.tensor
    return torch.from_numpy(value).float(), torch.from_numpy(traceless).float()


def _standardisation(crystals: LabelledCrystals, target: Target) -> Standardisation:
    values = crystals.value
    if target.scale == "log" and values.min() <= 0:
        raise InputError(
            f"The label {target.columns[0]!r} of {crystals.ids[int(values.argmin())]} is "
            f"{values.min():g}, which has no logarithm.",
            "scale is log.",
            "Leave such rows out with --low, or learn on a linear scale.",
        )
    learnt = np.log(values) if target.scale == "log" else values
    if np.ptp(learnt) <= SMALLEST_RANGE * np.abs(learnt).max():
        raise InputError(
            f"All {len(values)} training labels are {values[0]:g}.",
            "There is nothing to learn.",
            "Check the target column.",
        )
    return Standardisation(float(learnt.mean()), float(learnt.std()), float(values.std()))


def _parts(
    table: str | Path,
    target: Target,
    validation: str | Path | None,
    test: str | Path | None,
    split_by: Literal["formula", "random"],
    seed: int,
) -> dict[str, LabelledCrystals]:
    """Training, validation, test; what has no table of its own is cut from the first."""
    given = {"validation": validation, "test": test}
    cut = [name for name, source in given.items() if source is None]
    held_out = [FRACTIONS[1 + list(given).index(name)] for name in cut]
    whole = read_labelled(table, target)
    first, *rest = split(whole, split_by, [1 - sum(held_out), *held_out], seed) if cut else [whole]
    parts = {"training": first, **dict(zip(cut, rest, strict=True))}
    parts |= {
        name: read_labelled(source, target) for name, source in given.items() if source is not None
    }
    for name, part in parts.items():
        if not len(part):
            raise InputError(
                f"No crystal is left for {name}.",
                f"{table} has {len(whole)} labelled crystals, split by {split_by}.",
                "Give a larger table, another seed, or tables for --validation and --test.",
            )
    return {name: parts[name] for name in ("training", "validation", "test")}


def _examples(
    parts: dict[str, LabelledCrystals],
    bonds: bool,
    on_features: Callable[[int, int], None] | None,
) -> dict[str, Examples]:
    """Parts with features, less the crystals that CHGNet can't read."""
    total, done = sum(map(len, parts.values())), 0
    examples = {}
    for name, part in parts.items():
        features: list[CrystalFeatures] = []
        rows: list[int] = []
        for start in range(0, len(part), FEATURES_AT_ONCE):
            cells = part.cells[start : start + FEATURES_AT_ONCE]
            for k, found in enumerate(frozen_chgnet().features(cells, bonds=bonds)):
                if isinstance(found, CrystalFeatures):
                    features.append(found)
                    rows.append(start + k)
            done += len(cells)
            if on_features is not None:
                on_features(done, total)
        if not rows:
            raise InputError(
                f"CHGNet can't read any of the {len(part)} crystals for {name}.",
                fix="Look at them with: nucleate score TABLE --property e_above_hull",
            )
        examples[name] = Examples(features, part.take(np.array(rows)))
    return examples


def _element_counts(crystals: LabelledCrystals) -> dict[int, int]:
    """Crystals with each element."""
    present = np.concatenate([np.unique(cell.numbers) for cell in crystals.cells])
    numbers, counts = np.unique(present, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }
