"""The best crystals of a run and of judged sets: which they are, and as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.protocols import Status

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from nucleate.evaluation.summary import Evaluation
    from nucleate.objectives.objective import Objective
    from nucleate.structures.formulas import FormulaIndex

CRYSTALS_CSV = "crystals.csv"
CRYSTALS_EXTXYZ = "crystals.extxyz"
CIF_FOLDER = "cif"
RUN = "run"
"""Name of the set of crystals that come from the steps of a run."""
DOUBTFUL_BELOW = -0.3
"""eV/atom; so far below the hull the potential is the likelier explanation."""


@dataclass(frozen=True)
class BestOfRun:
    """The best new crystals that a run has evaluated, and out of how many.

    Attributes:
        table: best first: ``digest``, ``step``, ``sample`` (its place in the step), ``log_prob``
            (nats), ``reward`` by the objective, without a bonus.
        evaluated: different crystals that have a reward.
        new: formulas of those among them that are new and, where that is asked for, stable.
    """

    table: pd.DataFrame
    evaluated: int
    new: int


def best_of_run(
    objective: Objective,
    known: FormulaIndex,
    limit: int,
    *,
    stability: str = "",
    stable_below: float = 0.1,
) -> BestOfRun:
    """The crystals of highest reward that a run has evaluated, of each new formula the best.

    Nothing is evaluated or decoded for it: what the store holds decides.

    Args:
        objective: with the store of the run.
        known: formulas of the training set.
        limit: at most so many.
        stability: what the store calls the energy above hull (eV/atom) that crystals have to be
            stable by; it decides where rewards are equal. Empty where stability is not asked for.
        stable_below: eV/atom.
    """
    import pandas as pd

    from nucleate.store.packing import unpack_batch
    from nucleate.structures.formulas import batch_keys

    names = [*objective.properties, *filter(None, [stability])]
    table = pd.DataFrame(objective.store.crystals(*dict.fromkeys(names)))
    table = table[table["status"] == Status.OK.value].drop_duplicates("digest")
    values = {name: table[name].to_numpy(dtype=float) for name in names}
    table = table.assign(reward=objective.reward(values))
    evaluated = len(table)
    if stability:
        table = table[(table[stability] < stable_below) & (table[stability] >= DOUBTFUL_BELOW)]
    order = {"reward": False, **({stability: True} if stability else {})}
    table = table.sort_values(list(order), ascending=list(order.values()), kind="stable")
    table = table.drop_duplicates("formula")
    drawn = unpack_batch(objective.store.tokens(table["digest"].tolist()))
    table = table[~known.contains(batch_keys(drawn))]
    table = table.rename(columns={"position": "sample"})
    columns = ["digest", "step", "sample", "log_prob", "reward"]
    return BestOfRun(table[columns].head(limit), evaluated, len(table))


@dataclass(frozen=True)
class Best:
    """Chosen crystals, best first: structures and their rows of the evaluation table."""

    structures: list[Structure]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.structures)


def comparable(table: pd.DataFrame) -> pd.Series:
    """(N,) bool, the crystals of a judged set that can be among the best.

    Those with a reward; where none has one the energy above hull decides, and those with an energy
    take part, behind what has a reward.
    """
    rewarded = "reward" in table and table["reward"].notna().any()
    return table["reward" if rewarded else "e_above_hull"].notna()


def select_best(
    evaluations: Sequence[Evaluation], limit: int = 100, *, stable: bool = True
) -> Best:
    """The crystals to show, of all that were judged.

    First those that are new and, where that is asked for, stable, then other valid ones; within
    each by the objective's reward, and where that is equal by energy above the main hull. What is
    below the hull by more than :data:`DOUBTFUL_BELOW` says does not count as stable here. Of equal
    crystals the first in this order is taken, and of its formula only the first counts as new.

    Args:
        evaluations: sets of crystals judged alike, such as one for each seed, of which
            :func:`comparable` says who takes part. Columns ``step`` and ``relaxed`` are added to
            tables that lack them: no step, and what the set says.
        limit: at most so many.
        stable: whether stability is asked for.
    """
    import pandas as pd

    from nucleate.structures.identity import unique

    tables = []
    for evaluation in evaluations:
        relaxed = evaluation.summary["settings"]["relaxed"]
        origin = {"set": evaluation.name, "step": math.nan, "relaxed": relaxed}
        origin |= {"reward": math.nan, "known": comparable(evaluation.table)}
        table = evaluation.table
        tables.append(table.assign(**{k: v for k, v in origin.items() if k not in table}))
    table = pd.concat([table.astype({"step": object}) for table in tables], ignore_index=True)
    structures = [structure for e in evaluations for structure in e.structures]
    credible = table["stable"] & (table["e_above_hull"] >= DOUBTFUL_BELOW)
    passes = table["valid"] & table["novel"] & (credible | (not stable))
    table = table.assign(passes=passes)[table["valid"] & table["known"]]
    order = ["passes", "reward", "e_above_hull"]
    table = table.sort_values(order, ascending=[False, False, True], kind="stable")
    table = table[unique([structures[i] for i in table.index])[0]]
    again = table["stable_new_formula"] & table.duplicated(["formula", "stable_new_formula"])
    table = table.assign(stable_new_formula=table["stable_new_formula"] & ~again).head(limit)
    best = [structure for i in table.index if (structure := structures[i]) is not None]
    rows = table.drop(columns=["passes", "known"]).to_dict("records")
    return Best(best, [{str(k): v for k, v in row.items()} for row in rows])


def write_best(best: Best, directory: Path) -> None:
    """Write ``crystals.csv``, ``crystals.extxyz`` and one CIF each into ``cif/``.

    All say the rank, with which the names of the CIF files begin, the reward where it is known, and
    the step of the run that found it. The table's ``cif`` column names the file; columns of
    energies name their unit. Ranked files that an earlier list has left are removed.
    """
    from nucleate.evaluation.summary import to_file
    from nucleate.structures.writing import write_cifs, write_extxyz, write_table

    width = max(3, len(str(len(best))))
    names = [f"{i:0{width}d}_{row['formula']}" for i, row in enumerate(best.rows, 1)]
    first = dict.fromkeys(("rank", "reward", "set", "step", "sample", "relaxed"), math.nan)
    ranked = [{**first, **row, "rank": i} for i, row in enumerate(best.rows, 1)]
    said = [_said(row) for row in ranked]
    paths = write_cifs(best.structures, directory / CIF_FOLDER, names, comments=said)
    rows: list[Mapping[str, Any]] = [
        {"cif": f"{CIF_FOLDER}/{path.name}", **row} for path, row in zip(paths, ranked, strict=True)
    ]
    write_extxyz(best.structures, directory / CRYSTALS_EXTXYZ, [_properties(r) for r in rows])
    table = [{to_file(key): value for key, value in row.items()} for row in rows]
    write_table(table, directory / CRYSTALS_CSV)
    for left in set((directory / CIF_FOLDER).glob("[0-9][0-9][0-9]*_*.cif")) - set(paths):
        left.unlink()


def _said(row: Mapping[str, Any]) -> str:
    """Rank, reward, energy above the main hull and origin in a line, what is not known left out."""
    told = (
        ("reward", row["reward"], ""),
        ("e_above_hull", row["e_above_hull"], " eV/atom"),
        ("step", row["step"], " of the run"),
    )
    known = [f"{name} {x:.6g}{unit}" for name, x, unit in told if math.isfinite(x)]
    return ", ".join([f"rank {row['rank']}", *known])


def _properties(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an extended XYZ frame carries: columns of the table, ``_`` for ``@`` in their names."""
    from nucleate.evaluation.summary import to_file

    kept = {key: row[key] for key in ("rank", "reward", "set", "step", "relaxed")}
    kept |= {"formula": row["formula"], "space_group": int(row["space_group"])}
    for key, value in row.items():
        if key.startswith(("e_above_hull", "energy_per_atom")):
            kept[to_file(key).replace("@", "_")] = value
    for key in ("stable", "novel", "new_formula", "sun", "hull_support"):
        if key in row:
            kept[key] = row[key]
    return kept
