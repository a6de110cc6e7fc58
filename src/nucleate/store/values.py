"""Values on their way into and out of SQLite, and its errors in a user's words."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from typing import Any

import numpy as np

from nucleate.errors import CheckpointError, NucleateError, StorageError


def finite(value: float) -> float | None:
    """The number, or None (NULL) where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


def number(value: float | None) -> float:
    """The inverse of :func:`finite`: NaN for NULL."""
    return math.nan if value is None else float(value)


def numbers(text: str) -> dict[str, float]:
    """Numbers by name from JSON, NaN for null."""
    return {name: number(value) for name, value in json.loads(text).items()}


def compact_json(values: Mapping[str, Any]) -> str:
    """Compact JSON with sorted keys; numbers that are not finite become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        if isinstance(value, (np.generic, np.ndarray)):
            return plain(value.tolist())
        if isinstance(value, float):
            return finite(value)
        return value

    return json.dumps(plain(values), sort_keys=True, separators=(",", ":"), allow_nan=False)


def sqlite_error(path: str, action: str, error: sqlite3.DatabaseError) -> NucleateError:
    """The error that tells a user what SQLite found and what to do about it."""
    why = str(error)
    if "full" in why:
        fix = f"Free space on the disk of {path}, then resume with --resume; nothing is lost."
    elif "readonly" in why or "unable to open" in why or "permission" in why.lower():
        fix = "Choose a folder that exists and that you may write to (output.directory)."
    elif "locked" in why or "busy" in why:
        fix = "Another process is writing to it; wait for it or stop it."
    elif "malformed" in why or "not a database" in why:
        return CheckpointError(
            f"{path} can't be read.", f"SQLite says: {why}.", "Restore it from a copy."
        )
    else:
        fix = "Check the disk, then resume with --resume."
    return StorageError(f"Can't {action} {path}.", f"SQLite says: {why}.", fix)
