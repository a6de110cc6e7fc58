"""Tables of labelled crystals: what a predictor learns from and is judged by."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nucleate.config import Settings, option
from nucleate.errors import InputError, NucleateError, did_you_mean
from nucleate.physics.cells import Cell, as_cell
from nucleate.predictors.features import COMPONENTS
from nucleate.structures.elements import SYMBOLS
from nucleate.structures.io import iter_raw, source_files
from nucleate.structures.parsing import ID_COLUMNS, RawRecord, parse_cell

Kind = Literal["scalar", "tensor", "probability"]


class Target(Settings):
    """What is predicted, and which labels count."""

    name: str = option(description="of the predicted quantity")
    unit: str = option("", "of the predicted quantity")
    kind: Kind = option("scalar", "a number, a symmetric tensor, or the probability of a flag")
    columns: tuple[str, ...] = option(
        description="that hold the label; the first one of them that a row has counts", min_length=1
    )
    low: float | None = option(None, "labels with a smaller component are left out")
    high: float | None = option(None, "labels with a larger component are left out")
    minimum: float | None = option(None, "what is predicted below is raised to this")
    scale: Literal["linear", "log"] = option("linear", "in which values are learnt")


@dataclass(frozen=True)
class LabelledCrystals:
    """N crystals with labels.

    Attributes:
        cells: the crystals.
        ids: N identifiers.
        value: (N,) float64, the label; of a tensor the mean of its eigenvalues.
        traceless: (N, 6) float64, the components of a tensor less that mean, in the order of
            :data:`~nucleate.predictors.features.COMPONENTS`; NaN where only the mean is known.
        left_out: how many rows were left out, by reason.
        files: sha256 of each file, by name.
    """

    cells: list[Cell]
    ids: list[str]
    value: np.ndarray
    traceless: np.ndarray
    left_out: Mapping[str, int]
    files: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: np.ndarray) -> LabelledCrystals:
        """Some of the crystals."""
        return LabelledCrystals(
            [self.cells[i] for i in rows],
            [self.ids[i] for i in rows],
            self.value[rows],
            self.traceless[rows],
            self.left_out,
            self.files,
        )

    def formulas(self) -> list[str]:
        """Reduced formula of each crystal, elements in the order of their numbers."""
        return [_formula(cell.numbers) for cell in self.cells]


def read_labelled(source: str | Path, target: Target) -> LabelledCrystals:
    """Crystals with labels from a table, or from several by a glob.

    A tensor is nine numbers (rows of a matrix, which is made symmetric), six (xx, yy, zz, yz, xz,
    xy), or one, the mean of its eigenvalues. Of rows with the same id the one whose label stands in
    the earlier target column counts, then the earlier row.

    Args:
        source: a file or quoted glob of any table that :mod:`nucleate.structures.io` reads.
        target: the columns of labels, and which count.

    Raises:
        InputError: the source can't be read, no row has one of the columns, a label can't be
            understood, or no row is left.
    """
    left_out: Counter[str] = Counter()
    found: dict[str, tuple[int, Cell, np.ndarray]] = {}
    columns: set[str] = set()
    for raw in iter_raw(source):
        columns |= set(raw.properties)
        rank, label = _label(raw, target)
        if label is None:
            left_out["no label"] += 1
        elif raw.id in found and found[raw.id][0] <= rank:
            left_out["id seen before"] += 1
        elif (target.low is not None and label.min() < target.low) or (
            target.high is not None and label.max() > target.high
        ):
            left_out["label out of range"] += 1
        elif isinstance(cell := _cell(raw), str):
            left_out[cell] += 1
        else:
            left_out["id seen before"] += raw.id in found
            found[raw.id] = (rank, cell, label)
    if not columns & set(target.columns):
        known = sorted(columns - set(ID_COLUMNS))
        raise InputError(
            f"{source} has no column {' or '.join(map(repr, target.columns))}.",
            f"Its columns are: {', '.join(known) or 'none'}.",
            did_you_mean(target.columns[0], known) if known else "",
        )
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{source} has no labelled crystal.", f"Left out: {reasons}.")
    value, traceless = _parts([label for _, _, label in found.values()])
    return LabelledCrystals(
        [cell for _, cell, _ in found.values()],
        list(found),
        value,
        traceless,
        {reason: count for reason, count in left_out.items() if count},
        {path.name: _sha256(path) for path in source_files(source)},
    )


def split(
    crystals: LabelledCrystals,
    by: Literal["formula", "random"],
    fractions: Sequence[float],
    seed: int,
) -> list[LabelledCrystals]:
    """Parts of a table, such as training, validation and test.

    A crystal's part follows from a hash of seed and formula (or id), so it stays the same when rows
    are added, and with "formula" no two parts share one.

    Args:
        crystals: the table.
        by: "formula" keeps all crystals of a formula together, "random" does not.
        fractions: of the parts, in total 1.
        seed: another number gives another split.
    """
    keys = crystals.formulas() if by == "formula" else crystals.ids
    draw = np.array([_uniform(f"{seed}:{key}") for key in keys])
    part = np.searchsorted(np.cumsum(fractions)[:-1], draw, side="right")
    return [crystals.take(np.flatnonzero(part == k)) for k in range(len(fractions))]


def _cell(raw: RawRecord) -> Cell | str:
    """The crystal, or in one or two words why it can't be used."""
    cell, reason = parse_cell(raw)
    if cell is None:
        return reason.split(":")[0]
    try:
        return as_cell(Cell(*cell))
    except NucleateError as error:
        return error.what


def _label(raw: RawRecord, target: Target) -> tuple[int, np.ndarray | None]:
    """Rank of the first target column that the row has, and its label: (1,) or (6,)."""
    for rank, column in enumerate(target.columns):
        value = raw.properties.get(column)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise _not_understood(raw, column, value, target) from None
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        try:
            label = np.atleast_1d(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError):
            raise _not_understood(raw, column, value, target) from None
        if label.size == 9:
            matrix = label.reshape(3, 3)
            label = np.array([(matrix[i, j] + matrix[j, i]) / 2 for i, j in COMPONENTS])
        allowed = (1, 6) if target.kind == "tensor" else (1,)
        if label.shape not in [(n,) for n in allowed] or not np.isfinite(label).all():
            raise _not_understood(raw, column, value, target)
        if target.kind == "probability" and label[0] not in (0.0, 1.0):
            raise _not_understood(raw, column, value, target)
        return rank, label
    return len(target.columns), None


def _not_understood(raw: RawRecord, column: str, value: Any, target: Target) -> InputError:
    expected = {
        "scalar": "a number",
        "tensor": "nine numbers, six (xx, yy, zz, yz, xz, xy), or the mean of the eigenvalues",
        "probability": "true or false, or 1 or 0",
    }[target.kind]
    return InputError(
        f"{raw.source}: the label {column!r} is {str(value)[:60]!r}.",
        f"For kind {target.kind!r} it must be {expected}.",
        "Mend the table, leave the cell empty, or choose another --kind.",
    )


def _parts(labels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) values and (N, 6) traceless parts of labels."""
    value = np.array([label[:3].mean() if len(label) == 6 else label[0] for label in labels])
    traceless = np.full((len(labels), 6), np.nan)
    diagonal = np.array([i == j for i, j in COMPONENTS])
    for row, label in enumerate(labels):
        if len(label) == 6:
            traceless[row] = label - value[row] * diagonal
    return value, traceless


def _formula(numbers: np.ndarray) -> str:
    elements, counts = np.unique(numbers, return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    return "".join(
        f"{SYMBOLS[z - 1]}{n if n > 1 else ''}" for z, n in zip(elements, counts, strict=True)
    )


def _uniform(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
