"""The best crystals of a judged set: which they are, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def select_best(
    evaluation: Evaluation,
    structures: Sequence[Structure | None],
    limit: int = 100,
    hull_support: Sequence[int] | None = None,
) -> Best:
    """The crystals to show.

    Order: S.U.N. crystals of a new formula, other S.U.N. crystals, then whatever else is unique
    and scored; within each by energy above the main hull.

    Args:
        evaluation: of ``structures``.
        structures: the B judged crystals.
        limit: at most so many.
        hull_support: B numbers of competing phases known to the main hull, if at hand; few mean
            that stability was tested against little.
    """
    table = evaluation.table
    if len(table) != len(structures):
        raise ValueError(f"{len(structures)} structures, but {len(table)} judged")
    if hull_support is not None:
        table = table.assign(hull_support=list(hull_support))
    chosen = table[
        (table["unique"] | table["unique_stable"]) & table["e_above_hull"].notna()
    ].assign(rank=lambda t: -(2 * t["sun"] + (t["sun"] & t["stable_new_formula"])).astype(int))
    chosen = chosen.sort_values(["rank", "e_above_hull"], kind="stable").head(limit)
    best: list[Structure] = []
    rows: list[dict[str, Any]] = []
    for position, row in zip(chosen.index, chosen.to_dict("records"), strict=True):
        structure = structures[int(position)]
        if structure is not None:
            best.append(structure)
            rows.append({str(key): value for key, value in row.items() if key != "rank"})
    return Best(best, rows)


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
