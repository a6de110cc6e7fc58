"""What the objective says of samples of base and tuned model: values, rewards, Pareto fronts.

The judge of :mod:`nucleate.evaluation.judge` says whether crystals are stable and new, whatever was
asked for; this says whether what was asked for has become more frequent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.evaluation.intervals import Fraction, mean_interval
from nucleate.objectives.explain import described
from nucleate.objectives.pareto import ParetoFront
from nucleate.protocols import Status
from nucleate.recipe import STABILITY
from nucleate.structures.validity import check_all

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from nucleate.evaluation.summary import Evaluation
    from nucleate.objectives.objective import Objective
    from nucleate.properties.stability import EnergyAboveHull
    from nucleate.samples import Samples

CHUNK = 64
"""Crystals whose values are recorded together."""
SIDES = ("base", "tuned")
MOST_BEST = 25
"""Crystals in the table of the best."""
FRONT_CSV = "pareto.csv"
FRONT_FOLDER = "pareto"


def outcome(objective: Objective, samples: Samples, n: int) -> pd.DataFrame:
    """What the objective says of the first ``n`` samples, one row for each.

    Values are recorded and charged to no step, so that an interrupted evaluation goes on.

    Returns:
        ``formula``, ``space_group``, ``reward``, ``status``, ``reason``, the value of each
        property under its name, and each score under ``score of`` and the label of its term.
    """
    import pandas as pd

    structures, digests = samples.structures[:n], samples.digests[:n]
    reasons = [
        first or second
        for first, second in zip(samples.reasons[:n], check_all(structures), strict=True)
    ]
    valid = [None if why else s for s, why in zip(structures, reasons, strict=True)]
    for start in range(0, len(valid), CHUNK):
        chunk = slice(start, start + CHUNK)
        objective.score(valid[chunk], digests[chunk], step=None, reasons=reasons[chunk])
    result = objective.score(valid, digests, step=None, reasons=reasons)
    return pd.DataFrame(
        {
            "formula": [samples.batch.formula(i) for i in range(len(valid))],
            "space_group": np.asarray(samples.batch.space_group[:n], dtype=np.int64),
            "reward": result.reward,
            "status": [status.value for status in result.status],
            "reason": result.reason,
            **{name: scores.value for name, scores in result.scores.items()},
            **{_score(label): column for label, column in result.shaped.items()},
        }
    )


def rewarded(
    objective: Objective,
    judge: EnergyAboveHull,
    judged: Sequence[Evaluation],
    outcomes: Sequence[pd.DataFrame],
) -> list[Evaluation]:
    """Judged sets whose tables have a column ``reward``, NaN where the objective has none to give.

    Args:
        objective: gives the reward.
        judge: whose energies above hull the tables hold; they are enough for an objective that asks
            for nothing else.
        judged: one set for each seed.
        outcomes: of :func:`outcome` for the first crystals of each set; empty if there are none.
    """
    same = {STABILITY: judge.key} == {n: p.key for n, p in objective.properties.items()}
    found = []
    for i, evaluation in enumerate(judged):
        reward = np.full(len(evaluation.table), np.nan)
        if outcomes:
            ok = outcomes[i]["status"] == Status.OK.value
            reward[: len(ok)] = outcomes[i]["reward"].where(ok).to_numpy()
        elif same and not objective.filters:
            energies = evaluation.table["e_above_hull"].to_numpy(dtype=np.float64)
            reward = objective.reward({STABILITY: energies})
        found.append(replace(evaluation, table=evaluation.table.assign(reward=reward)))
    return found


def compare_outcomes(
    objective: Objective,
    base: Sequence[pd.DataFrame],
    tuned: Sequence[pd.DataFrame],
    judged: Sequence[pd.DataFrame],
) -> dict[str, Any]:
    """Base against tuned by the objective.

    Args:
        objective: what the tables were made by.
        base: of :func:`outcome`, one for each seed.
        tuned: the same, of as many samples.
        judged: verdicts on the tuned samples, one table for each seed, whose first rows are those
            of ``tuned``.

    Returns:
        JSON-ready dictionary: ``n`` (samples of each), ``rows`` (a number of each side:
        ``quantity``, ``label``, ``unit``, ``base``, ``tuned``), ``reward`` and ``scored`` with
        intervals, ``lost`` (crystals without a reward by reason), ``values`` (of each property and
        side), ``best`` (tuned crystals of the highest reward, each once, and as what they are
        known), and for two and more terms ``pareto`` (terms, reference, front and all values of
        each side).
    """
    import pandas as pd

    tables = {
        name: pd.concat(parts, ignore_index=True)
        for name, parts in zip(SIDES, (base, tuned), strict=True)
    }
    ok = {name: table[table["status"] == Status.OK.value] for name, table in tables.items()}
    said: dict[str, Any] = {
        "n": len(tables["base"]),
        "combine": objective.combine,
        "reward": {
            name: asdict(mean_interval(table["reward"].tolist())) for name, table in tables.items()
        },
        "scored": {
            name: Fraction.of(len(ok[name]), len(table)).as_dict() for name, table in tables.items()
        },
        "lost": {name: _lost(table) for name, table in tables.items()},
    }
    said["rows"] = [
        _row("reward", "mean reward", "", *(said["reward"][side]["value"] for side in SIDES)),
        _row(
            "scored",
            "passes and has a score",
            "%",
            *(100 * said["scored"][side]["value"] for side in SIDES),
        ),
    ]
    for name, prop in objective.properties.items():
        middle = (_median(tables[side][name]) for side in SIDES)
        said["rows"].append(_row(f"median_{name}", f"median {name}", prop.unit, *middle))
    said["values"] = {
        name: {"unit": prop.unit, **{side: tables[side][name].dropna().tolist() for side in SIDES}}
        for name, prop in objective.properties.items()
    }
    said["best"] = _best(objective, tuned, judged)
    if len(objective.terms) > 1:
        said["pareto"] = _pareto(objective, ok)
        for key, label in (("hypervolume", "hypervolume"), ("size", "crystals on the front")):
            numbers = (said["pareto"][side][key] for side in SIDES)
            said["rows"].append(_row(key if key != "size" else "pareto_size", label, "", *numbers))
    return said


def _best(
    objective: Objective, tuned: Sequence[pd.DataFrame], judged: Sequence[pd.DataFrame]
) -> list[dict[str, Any]]:
    """The tuned crystals of the highest reward, the same crystal once for each seed."""
    import pandas as pd

    rows = pd.concat(
        [
            table.assign(
                unique=verdicts["unique"].to_numpy()[: len(table)],
                known_as=verdicts["known_as"].to_numpy()[: len(table)],
                hull=verdicts["e_above_hull"].to_numpy()[: len(table)],
            )
            for table, verdicts in zip(tuned, judged, strict=True)
        ],
        ignore_index=True,
    )
    rows = rows[(rows["status"] == Status.OK.value) & rows["unique"].astype(bool)]
    rows = rows.sort_values("reward", ascending=False, kind="stable").head(MOST_BEST)
    return [
        {
            "formula": str(row["formula"]),
            "space_group": int(row["space_group"]),
            "reward": float(row["reward"]),
            "e_above_hull": float(row["hull"]),
            "known_as": str(row["known_as"] or ""),
            "values": {name: float(row[name]) for name in objective.properties},
        }
        for _, row in rows.iterrows()
    ]


def _pareto(objective: Objective, ok: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    terms = [
        {
            "label": label,
            "unit": term.property.unit,
            "shaping": described(term.shaping),
            "reference": term.shaping.range[0],
            "best": term.shaping.range[1],
        }
        for label, term in zip(objective.labels, objective.terms, strict=True)
    ]
    names = [term.label for term in objective.terms]
    said: dict[str, Any] = {
        "terms": terms,
        "reference": "the lowest score of every term; 1 is the volume of all possible scores",
    }
    for side, table in ok.items():
        front = ParetoFront([term.shaping.range for term in objective.terms])
        scores = table[[_score(label) for label in objective.labels]].to_numpy(dtype=np.float64)
        front.add(scores, [str(i) for i in range(len(table))])
        rows = sorted(map(int, front.names), key=lambda i: -scores[i, 0])
        values = table[names].to_numpy(dtype=np.float64)
        said[side] = {
            "hypervolume": front.hypervolume,
            "size": len(front),
            "front": [
                {
                    "formula": str(table["formula"].iloc[i]),
                    "space_group": int(table["space_group"].iloc[i]),
                    "values": values[i].tolist(),
                    "scores": scores[i].tolist(),
                }
                for i in rows
            ],
            "values": values.tolist(),
        }
    return said


def as_scored(objective: Objective, digests: Sequence[str]) -> list[Structure]:
    """Crystals of a run as the objective was given them: relaxed ones where the run relaxed them.

    Args:
        objective: with the store of the run.
        digests: of the crystals as drawn, each with a reward.
    """
    from nucleate.physics.cells import Cell, as_structure
    from nucleate.store.packing import unpack_batch
    from nucleate.structures.wyckoff import decode

    if objective.crystals:
        cells = objective.store.cells(objective.crystals, digests)
        return [as_structure(Cell(*cells[digest])) for digest in digests]
    drawn, _ = decode(unpack_batch(objective.store.tokens(digests)))
    return [structure for structure in drawn if structure is not None]


def write_front(objective: Objective, folder: Path) -> None:
    """Write the Pareto front of all crystals of a run: ``pareto.csv``, and CIFs in ``pareto/``.

    The CIFs hold the crystals that have the scores: relaxed ones where the run relaxed them, and
    then ``pareto/drawn/`` holds what the policy drew. Rewards are the objective's, without what a
    bonus added to them in the run.

    Args:
        objective: with the store of the run.
        folder: for both.
    """
    from nucleate.structures.writing import column_name, write_cifs, write_table

    front = objective.front()
    if not len(front):
        return
    known = objective.store.crystals(*objective.properties)
    known["reward"] = objective.reward({name: known[name] for name in objective.properties})
    first = {digest: i for i, digest in reversed(list(enumerate(known["digest"].tolist())))}
    order = sorted(range(len(front)), key=lambda k: -front.scores[k, 0])
    digests = [front.names[k] for k in order]
    width = max(3, len(str(len(digests))))
    rows = [first[digest] for digest in digests]
    names = [f"{n:0{width}d}_{known['formula'][row]}" for n, row in enumerate(rows, 1)]
    files = {"cif": (FRONT_FOLDER, as_scored(objective, digests))}
    if objective.crystals:
        files["cif_as_drawn"] = f"{FRONT_FOLDER}/drawn", as_scored(objective.as_drawn(), digests)
    columns = {name: name for name in ("formula", "space_group", "step", "reward")} | {
        name: column_name(name, prop.unit) for name, prop in objective.properties.items()
    }
    table: list[dict[str, Any]] = [{} for _ in rows]
    for column, (place, structures) in files.items():
        for entry, path in zip(table, write_cifs(structures, folder / place, names), strict=True):
            entry[column] = f"{place}/{path.name}"
    for entry, row in zip(table, rows, strict=True):
        entry |= {column: known[name][row] for name, column in columns.items()}
    write_table(table, folder / FRONT_CSV)


def markdown(said: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a table of :func:`compare_outcomes`, with what it means."""
    n = said["n"]
    yield f"The objective on {n:,} samples each (scores combined by {said['combine']}):"
    yield ""
    yield "| objective | unit | base | tuned |"
    yield "|---|---|---|---|"
    for row in said["rows"]:
        yield f"| {row['label']} | {row['unit']} | {number(row['base'])} | {number(row['tuned'])} |"
    if "pareto" in said:
        terms = "; ".join(f"{term['label']}: {term['shaping']}" for term in said["pareto"]["terms"])
        yield ""
        yield f"Hypervolume of the scores ({terms}) from {said['pareto']['reference']}."


def number(value: float | None) -> str:
    """A number in four digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:.4g}"


def _row(quantity: str, label: str, unit: str, base: float, tuned: float) -> dict[str, Any]:
    return {"quantity": quantity, "label": label, "unit": unit, "base": base, "tuned": tuned}


def _score(label: str) -> str:
    return f"score of {label}"


def _median(values: pd.Series) -> float:
    return float(values.median()) if values.notna().any() else math.nan


def _lost(table: pd.DataFrame) -> dict[str, int]:
    """Crystals without a reward of their own by status and reason, the most frequent first."""
    lost = table[table["status"] != Status.OK.value]
    labels = (
        f"{status}: {str(reason).partition(':')[0]}"
        for status, reason in zip(lost["status"], lost["reason"], strict=True)
    )
    return dict(Counter(labels).most_common())
