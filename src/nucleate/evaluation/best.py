"""The best crystals of a judged set: which they are, and as files."""

from __future__ import annotations

import math
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
    evaluations: Sequence[Evaluation], limit: int = 100, *, stable: bool = True
) -> Best:
    """The crystals to show, of all that were judged.

    First those that are new and, where that is asked for, stable, then other valid ones; within
    each by the objective's reward, and where that is equal by energy above the main hull. Of equal
    crystals the first in this order is taken, and of its formula only the first counts as new.

    Args:
        evaluations: sets of crystals judged alike, such as one for each seed. Where the tables have
            a column ``reward``, only crystals with a reward are taken; where none has one, the
            energy decides, and only crystals that have one are taken.
        limit: at most so many.
        stable: whether stability is asked for.
    """
    import pandas as pd

    from nucleate.structures.identity import unique

    tables = [evaluation.table.assign(set=evaluation.name) for evaluation in evaluations]
    table = pd.concat(tables, ignore_index=True)
    structures = [structure for e in evaluations for structure in e.structures]
    if "reward" not in table or table["reward"].isna().all():
        table = table.assign(reward=math.nan)
    known = table["reward" if table["reward"].notna().any() else "e_above_hull"].notna()
    passes = table["valid"] & table["novel"] & (table["stable"] | (not stable))
    table = table.assign(passes=passes)[table["valid"] & known]
    order = ["passes", "reward", "e_above_hull"]
    table = table.sort_values(order, ascending=[False, False, True], kind="stable")
    table = table[unique([structures[i] for i in table.index])[0]]
    again = table["stable_new_formula"] & table.duplicated(["formula", "stable_new_formula"])
    table = table.assign(stable_new_formula=table["stable_new_formula"] & ~again).head(limit)
    best = [structure for i in table.index if (structure := structures[i]) is not None]
    rows = table.drop(columns="passes").to_dict("records")
    return Best(best, [{str(k): v for k, v in row.items()} for row in rows])


def write_best(best: Best, directory: Path) -> None:
    """Write ``crystals.csv``, ``crystals.extxyz`` and one CIF each into ``cif/``.

    All say the rank, with which the names of the CIF files begin, and the reward where it is known.
    The table's ``cif`` column names the file; energies are in eV/atom.
    """
    from nucleate.structures.writing import write_cifs, write_extxyz, write_table

    width = max(3, len(str(len(best))))
    names = [f"{i:0{width}d}_{row['formula']}" for i, row in enumerate(best.rows, 1)]
    ranked = [{"rank": i, "reward": math.nan, **row} for i, row in enumerate(best.rows, 1)]
    said = [_said(row) for row in ranked]
    paths = write_cifs(best.structures, directory / CIF_FOLDER, names, comments=said)
    rows: list[Mapping[str, Any]] = [
        {"cif": f"{CIF_FOLDER}/{path.name}", **row} for path, row in zip(paths, ranked, strict=True)
    ]
    write_extxyz(best.structures, directory / CRYSTALS_EXTXYZ, [_properties(r) for r in rows])
    write_table(rows, directory / CRYSTALS_CSV)


def _said(row: Mapping[str, Any]) -> str:
    """Rank, reward and energy above the main hull in a line, what is not known left out."""
    told = (("reward", row["reward"], ""), ("e_above_hull", row["e_above_hull"], " eV/atom"))
    known = [f"{name} {x:.6g}{unit}" for name, x, unit in told if math.isfinite(x)]
    return ", ".join([f"rank {row['rank']}", *known])


def _properties(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an extended XYZ frame carries, units in the names."""
    kept = {"rank": row["rank"], "reward": row["reward"]}
    kept |= {"formula": row["formula"], "space_group": int(row["space_group"])}
    for key, value in row.items():
        if key.startswith(("e_above_hull", "energy_per_atom")):
            kept[f"{key}_eV_per_atom".replace("_per_atom_eV", "_eV").replace("@", "_")] = value
    for key in ("stable", "novel", "new_formula", "sun", "hull_support"):
        if key in row:
            kept[key] = row[key]
    return kept
