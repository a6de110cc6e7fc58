"""Tables of known phases: what reference hulls are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import InputError

if TYPE_CHECKING:
    from nucleate.physics.hull import CompositionLike


@dataclass(frozen=True)
class PhaseTable:
    """Known phases on one energy scale.

    Attributes:
        compositions: M compositions.
        energy_per_atom: (M,) eV/atom: formation energies or total energies.
        formation: which of the two.
        correction: correction scheme that the energies include.
        data_hashes: sha256 of each file that was read.
        skipped: what was left out, with reasons.
    """

    compositions: Sequence[CompositionLike]
    energy_per_atom: np.ndarray
    formation: bool
    correction: str
    data_hashes: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.compositions) != len(self.energy_per_atom):
            raise ValueError(
                f"{len(self.compositions)} compositions, {len(self.energy_per_atom)} energies"
            )


def read_formation_table(
    path: Path | str,
    *,
    correction: str,
    formula_column: str = "formula",
    energy_column: str = "e_form",
) -> PhaseTable:
    """Formation energies (eV/atom) from a csv or parquet table.

    Args:
        path: the table.
        correction: correction scheme of the energies, as the table cannot tell.
        formula_column: column of chemical formulas.
        energy_column: column of formation energies, eV/atom.

    Raises:
        InputError: the file cannot be read or a column is missing.
    """
    import pandas as pd

    file = Path(path)
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the table {file}", str(error), "Give a csv or parquet file."
        ) from error
    absent = {formula_column, energy_column} - set(table.columns)
    if absent:
        raise InputError(
            f"{file} has no column {', '.join(sorted(absent))}",
            f"Its columns are {', '.join(map(str, table.columns))}.",
            "Name the columns of formulas and formation energies (eV/atom).",
        )
    return PhaseTable(
        table[formula_column].astype(str).tolist(),
        pd.to_numeric(table[energy_column], errors="coerce").to_numpy(dtype=np.float64),
        formation=True,
        correction=correction,
        data_hashes={file.name: file_sha256(file)},
    )


def file_sha256(path: Path) -> str:
    """sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
