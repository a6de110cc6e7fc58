"""Numeric labels of crystals: what a source calls them, and a table that fills in missing ones.

A label that the source gives is never overruled. What it lacks is looked up in a table by the
crystal's own id, such as the table that ``nucleate score crystals --out energies.csv`` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError, RecipeError, did_you_mean
from nucleate.structures.parsing import ID_COLUMNS, RawRecord

if TYPE_CHECKING:
    import pandas as pd

LABELS: dict[str, tuple[str, ...]] = {
    "e_hull": ("e_hull", "energy_above_hull", "e_above_hull", "ehull"),
    "e_form": ("e_form", "formation_energy_per_atom", "e_form_per_atom"),
    "band_gap": ("band_gap", "dft_band_gap"),
}  # our name: the columns that hold it in public datasets, the first one with a number counts


def label(record: RawRecord, columns: Iterable[str]) -> float:
    """The first number that the record has in one of the columns, NaN if there is none."""
    for column in columns:
        value = record.properties.get(column)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return math.nan


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Labels by the id of a crystal.

    Attributes:
        path: the file.
        columns: the column of the file that holds each label.
        rows: row of each id in ``values``.
        values: (N,) float64 for each label, NaN where the table has none.
    """

    path: Path
    columns: Mapping[str, str]
    rows: Mapping[str, int]
    values: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, path: str | Path, columns: Mapping[str, str] | None = None) -> LabelTable:
        """Read a table with a column of ids and at least one label.

        Args:
            path: CSV, JSON lines or parquet.
            columns: the column of some labels; all that go by a name in :data:`LABELS` by default.

        Raises:
            InputError: the file can't be read, has no column of ids or of labels, holds something
                other than numbers there, or says two things about one id.
            RecipeError: ``columns`` names a label that there is not.
        """
        import pandas as pd

        path = Path(path)
        frame = _frame(path)
        ids = next((name for name in ID_COLUMNS if name in frame), None)
        if ids is None:
            raise InputError(
                f"{path} has no column with the ids of crystals.",
                f"Its columns are: {', '.join(map(str, frame))}.",
                f"Name the column with ids one of: {', '.join(ID_COLUMNS)}.",
            )
        used = _label_columns(path, list(frame), columns)
        numbers = pd.DataFrame({name: _numbers(path, frame[used[name]]) for name in used})
        grouped = numbers.groupby(frame[ids].astype(str).to_numpy(), sort=False)
        low, high = grouped.min(), grouped.max()
        for name, column in used.items():
            twice = low.index[low[name] < high[name]]
            if len(twice):
                key = twice[0]
                raise InputError(
                    f"{path} says two things about {key}.",
                    f"{column} is {low[name][key]:g} and {high[name][key]:g}.",
                    "Leave one row for each id.",
                )
        rows = {key: row for row, key in enumerate(low.index)}
        return cls(path, used, rows, {name: low[name].to_numpy() for name in used})

    def of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Labels of some crystals: (len(ids),) float64 each, NaN where the table has none."""
        rows = np.array([self.rows.get(key, -1) for key in ids], dtype=np.int64)
        return {
            name: np.where(rows >= 0, values[rows], math.nan)
            for name, values in self.values.items()
        }


def _frame(path: Path) -> pd.DataFrame:
    """A table of any known format."""
    import pandas as pd

    readers: dict[str, Any] = {
        ".csv": lambda: pd.read_csv(path, dtype=dict.fromkeys(ID_COLUMNS, str)),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=dict.fromkeys(ID_COLUMNS, str)),
        ".parquet": lambda: pd.read_parquet(path),
    }
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: no table of labels has this extension.",
            fix=f"Give a file that ends in {', '.join(readers)}.",
        )
    if not path.is_file():
        raise InputError(f"There is no such file: {path}.", fix="Check the path of the labels.")
    try:
        return readers[path.suffix.lower()]()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read.", str(error), "Write the table again.") from error


def _label_columns(
    path: Path, there: Sequence[str], wanted: Mapping[str, str] | None
) -> dict[str, str]:
    """The column of each label that the table shall give."""
    if wanted is None:
        found = {
            name: next((column for column in columns if column in there), "")
            for name, columns in LABELS.items()
        }
        found = {name: column for name, column in found.items() if column}
        if not found:
            known = ", ".join(column for columns in LABELS.values() for column in columns)
            raise InputError(
                f"{path} has no column with a label.",
                f"Its columns are: {', '.join(there)}; labels are known as {known}.",
                f"Name the column, such as --label e_hull={there[-1]}.",
            )
        return found
    for name, column in wanted.items():
        if name not in LABELS:
            raise RecipeError(f"There is no label {name!r}.", fix=did_you_mean(name, LABELS))
        if column not in there:
            raise InputError(f"{path} has no column {column!r}.", fix=did_you_mean(column, there))
    return dict(wanted)


def _numbers(path: Path, column: pd.Series) -> np.ndarray:
    """(N,) float64, NaN where the table has nothing or no finite number."""
    try:
        values = column.astype("float64").to_numpy()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the column {column.name!r} holds something else than numbers.",
            str(error),
            "Leave cells empty where a label is unknown.",
        ) from error
    return np.where(np.isfinite(values), values, math.nan)
