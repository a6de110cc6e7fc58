"""The best crystals of a judged set: which they are, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from nucleate.evaluation.summary import Evaluation

CRYSTALS_CSV = "crystals.csv"
CRYSTALS_EXTXYZ = "crystals.extxyz"
CIF_FOLDER = "cif"


@dataclass(frozen=True)
class Best:
    """Chosen crystals, best first: structures and their rows of the evaluation table."""

    structures: list[Structure]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.structures)


def select_best(evaluations: Sequence[Evaluation], limit: int = 100) -> Best:
    """The crystals to show, of all that were judged.

    Order: S.U.N. crystals of a new formula, other S.U.N. crystals, then whatever else is unique
    and scored; within each by energy above the main hull. A crystal that several sets hold is
    taken once, and of its formula only the first counts as new.

    Args:
        evaluations: sets of crystals judged alike, such as one for each seed.
        limit: at most so many.
    """
    import pandas as pd

    from nucleate.structures.identity import unique

    tables = [evaluation.table.assign(set=evaluation.name) for evaluation in evaluations]
    table = pd.concat(tables, ignore_index=True)
    structures = [structure for e in evaluations for structure in e.structures]
    table = table[(table["unique"] | table["unique_stable"]) & table["e_above_hull"].notna()]
    table = _ranked(table)
    table = table[unique([structures[i] for i in table.index])[0]]
    again = table["stable_new_formula"] & table.duplicated(["formula", "stable_new_formula"])
    table = _ranked(table.assign(stable_new_formula=table["stable_new_formula"] & ~again))
    table = table.head(limit)
    best = [structure for i in table.index if (structure := structures[i]) is not None]
    return Best(best, [{str(k): v for k, v in row.items()} for row in table.to_dict("records")])


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of an evaluation table, the best first."""
    rank = -(2 * table["sun"] + (table["sun"] & table["stable_new_formula"])).astype(int)
    order = table.assign(rank=rank).sort_values(["rank", "e_above_hull"], kind="stable").index
    return table.loc[order]


def write_best(best: Best, directory: Path) -> None:
    """Write ``crystals.csv``, ``crystals.extxyz`` and one CIF each into ``cif/``.

    The table's ``cif`` column names the file; energies are in eV/atom.
    """
    from nucleate.structures.writing import write_cifs, write_extxyz, write_table

    width = max(3, len(str(len(best))))
    names = [f"{i:0{width}d}_{row['formula']}" for i, row in enumerate(best.rows, 1)]
    paths = write_cifs(best.structures, directory / CIF_FOLDER, names)
    rows: list[Mapping[str, Any]] = [
        {"cif": f"{CIF_FOLDER}/{path.name}", **row}
        for path, row in zip(paths, best.rows, strict=True)
    ]
    write_extxyz(best.structures, directory / CRYSTALS_EXTXYZ, [_properties(r) for r in rows])
    write_table(rows, directory / CRYSTALS_CSV)


def _properties(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an extended XYZ frame carries, units in the names."""
    kept = {"formula": row["formula"], "space_group": int(row["space_group"])}
    for key, value in row.items():
        if key.startswith(("e_above_hull", "energy_per_atom")):
            kept[f"{key}_eV_per_atom".replace("_per_atom_eV", "_eV").replace("@", "_")] = value
    for key in ("stable", "novel", "new_formula", "sun", "hull_support"):
        if key in row:
            kept[key] = row[key]
    return kept
