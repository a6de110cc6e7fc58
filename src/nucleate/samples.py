"""Sampled crystals into files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError
from nucleate.structures.writing import cif_text, write_cifs, write_extxyz, write_table

if TYPE_CHECKING:
    from nucleate.design import Samples

TABLES = (".csv", ".jsonl")


def check_output(path: str | Path) -> None:
    """Refuse a kind of file that is not written, before anything is sampled.

    Raises:
        InputError: an extension other than .csv, .jsonl and .extxyz, or a folder in use.
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
