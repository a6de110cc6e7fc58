"""Crystals drawn from a policy, and as files that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nucleate.errors import InputError
from nucleate.policies.condition import Condition, smallest_cell
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.recipe import Recipe
from nucleate.structures.writing import (
    check_place,
    cif_text,
    write_cifs,
    write_extxyz,
    write_table,
)
from nucleate.structures.wyckoff import WyckoffBatch, decode

if TYPE_CHECKING:
    from pymatgen.core import Structure

SAMPLE_CHUNK = 250
TABLES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Samples:
    """Crystals drawn from a policy, order kept.

    Attributes:
        batch: the tokens.
        structures: primitive cells, None where decoding failed.
        reasons: why it failed, empty where it did not.
        log_prob: (B,) nats.
        digests: content hashes; equal hashes mean equal crystals.
    """

    batch: WyckoffBatch
    structures: list[Structure | None]
    reasons: list[str]
    log_prob: np.ndarray
    digests: list[str]


def sample(
    policy: WyckoffPolicy, n: int, condition: Condition | None = None, *, seed: int = 0
) -> Samples:
    """Draw ``n`` crystals.

    Args:
        policy: see :func:`nucleate.policies.checkpoint.load_policy`.
        n: how many.
        condition: what is fixed; by default the space groups of the training data, no
            radioactive elements and at most 20 atoms in the primitive cell.
        seed: equal seeds give equal crystals.
    """
    condition = condition or default_condition(policy)
    generator = torch.Generator().manual_seed(seed)
    rollouts = [
        policy.sample(min(SAMPLE_CHUNK, n - start), condition, generator)
        for start in range(0, n, SAMPLE_CHUNK)
    ]
    batch = WyckoffBatch.concatenate([rollout.batch for rollout in rollouts])
    structures, reasons = decode(batch)
    log_prob = torch.cat([rollout.log_prob for rollout in rollouts]).numpy()
    digests = [batch.digest(i) for i in range(n)]
    return Samples(batch, structures, reasons, log_prob, digests)


def default_condition(policy: WyckoffPolicy) -> Condition:
    """Space groups of the training data, no radioactive elements."""
    return condition_from_recipe(Recipe(), policy)


def condition_from_recipe(recipe: Recipe, policy: WyckoffPolicy) -> Condition:
    """What a recipe's ``condition`` section means for a policy."""
    settings = recipe.condition
    if settings.space_groups == "training":
        fits = smallest_cell() <= settings.max_atoms
        weights = np.where(fits, policy.training_space_groups(), 0.0)
    else:
        weights = np.zeros(231)
        weights[list(settings.space_groups)] = 1.0
    elements = np.zeros(119, dtype=bool)
    elements[settings.elements.numbers()] = True
    return Condition(
        weights,
        elements,
        max_atoms=settings.max_atoms,
        temperature=settings.temperature,
        coordinate_temperature=settings.coordinate_temperature,
        top_p=settings.top_p,
    )


def check_output(path: str | Path) -> None:
    """Refuse a kind of file that is not written, and a place, before anything is sampled.

    Raises:
        InputError: an extension other than .csv, .jsonl and .extxyz, or a folder in use.
        StorageError: a place where nothing can be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ("", ".extxyz", *TABLES):
        raise InputError(
            f"{path}: crystals are not written as {suffix}.",
            "",
            "Give a folder for CIF files, or a name in .extxyz, .csv or .jsonl.",
        )
    if not suffix and path.is_dir() and any(path.glob("*.cif")):
        raise InputError(
            f"{path} holds CIF files already.",
            "The new ones would lie among them.",
            "Name another folder.",
        )
    check_place(path)


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """A row for each crystal: space group, formula, sites, atoms, log-probability (nats), reason.

    Crystals are counted from 1; atoms are those of the primitive cell.
    """
    batch = samples.batch
    rows = []
    for i, structure in enumerate(samples.structures):
        log_prob = float(samples.log_prob[i])
        rows.append(
            {
                "number": i + 1,
                "formula": batch.formula(i),
                "space_group": int(batch.space_group[i]),
                "n_sites": int(batch.n_sites[i]),
                "n_atoms": 0 if structure is None else len(structure),
                "log_prob_nats": log_prob if np.isfinite(log_prob) else None,
                "reason": samples.reasons[i],
            }
        )
    return rows


def write_samples(samples: Samples, path: str | Path) -> list[Path]:
    """Write crystals in the format that the name asks for.

    Args:
        samples: crystals; what could not be decoded is left out of CIF and extxyz, and is a row
            with its reason in tables.
        path: ``.csv`` or ``.jsonl`` (with a column ``cif``, which nucleate reads back),
            ``.extxyz``, or a folder that gets a CIF for each crystal.

    Returns:
        The files written.
    """
    check_output(path)
    path = Path(path)
    rows = rows_of(samples)
    found = [(row, s) for row, s in zip(rows, samples.structures, strict=True) if s is not None]
    if path.suffix.lower() in TABLES:
        table = [
            row | {"cif": "" if structure is None else cif_text(structure)}
            for row, structure in zip(rows, samples.structures, strict=True)
        ]
        write_table(table, path)
        return [path]
    crystals = [structure for _, structure in found]
    if path.suffix.lower() == ".extxyz":
        kept = ("number", "formula", "space_group", "log_prob_nats")
        write_extxyz(crystals, path, [{key: row[key] for key in kept} for row, _ in found])
        return [path]
    width = len(str(len(rows)))
    names = [f"{row['number']:0{width}d}_{row['formula']}" for row, _ in found]
    return write_cifs(crystals, path, names)
