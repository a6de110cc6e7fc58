"""Tables with one number for each element, as arrays that are indexed by atomic number.

A file is CSV with a column ``element`` of symbols, the column of the number, and any others; lines
that begin with ``#`` say where the numbers come from.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np

from nucleate.errors import InputError, cause, did_you_mean
from nucleate.structures.elements import ATOMIC_NUMBERS, SYMBOLS


def as_table(numbers: Mapping[str, float]) -> np.ndarray:
    """(119,) float64 of numbers by symbol, indexed by atomic number; NaN where there is none."""
    table = np.full(len(SYMBOLS) + 1, np.nan)
    for symbol, number in numbers.items():
        table[ATOMIC_NUMBERS[symbol]] = number
    return table


def table_hash(table: np.ndarray) -> str:
    """Sixteen hexadecimal digits that change with any number of a table."""
    return hashlib.sha256(np.ascontiguousarray(table, dtype="<f8").tobytes()).hexdigest()[:16]


def shipped_table(name: str, column: str) -> np.ndarray:
    """A table that ships with the package, by its file name; see :func:`read_table`."""
    return read_table(Path(str(files("nucleate") / "data" / "elements" / name)), column)


def read_table(path: str | Path, column: str) -> np.ndarray:
    """(119,) float64 of one column of a CSV file, indexed by atomic number; NaN where absent.

    Args:
        path: the file.
        column: name of the column of numbers, which must be finite and not negative.

    Raises:
        InputError: the file can't be read, lacks a column, or a row of it can't be used.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} can't be read as a table of elements.",
            cause(error),
            f"Give a CSV file with the columns 'element' and {column!r}.",
        ) from error
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if not line.startswith("#")]
    rows = csv.DictReader(line for _, line in numbered)
    for needed in ("element", column):
        if needed not in (rows.fieldnames or []):
            raise InputError(
                f"{path} has no column {needed!r}.",
                f"It has: {', '.join(rows.fieldnames or []) or 'none'}.",
                f"Give a CSV file with the columns 'element' and {column!r}.",
            )
    numbers: dict[str, float] = {}
    for row in rows:
        where = f"{path}, line {numbered[rows.line_num - 1][0]}"
        symbol = (row["element"] or "").strip()
        if symbol not in ATOMIC_NUMBERS:
            fix = did_you_mean(symbol, SYMBOLS)
            fix = fix if fix.startswith("Did") else "Use symbols such as Fe, O, Na."
            raise InputError(f"{where}: {symbol!r} is not the symbol of an element.", fix=fix)
        if symbol in numbers:
            raise InputError(
                f"{where}: {symbol} stands there twice.", fix="Remove one of the rows."
            )
        numbers[symbol] = _number(row[column], where, column)
    return as_table(numbers)


def _number(text: str | None, where: str, column: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(
            f"{where}: {column} can't be {text!r}.",
            "It must be a finite number that is not negative.",
            "Remove the row if the number is not known.",
        )
    return number
