"""Numbers of a judged set: fractions with intervals, diversity, elements, funnel, failures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nucleate.evaluation.intervals import METHODS, Fraction, mean_interval
from nucleate.protocols import Status
from nucleate.structures.writing import column_name

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

FLAGS = (
    "decodable",
    "valid",
    "charge_balanced",
    "stable",
    "on_hull",
    "metastable",
    "unique",
    "novel",
    "new_formula",
    "stable_new_formula",
    "sun",
)
PER_HULL_FLAGS = ("stable", "on_hull", "metastable", "stable_new_formula", "sun")
FUNNEL = ("sampled", "decodable", "valid", "scored", "stable", "unique", "novel")
_CLASSES = frozenset(
    {
        "distance",
        "cell volume",
        "cell length",
        "cell angle",
        "volume per atom",
        "non-finite",
    }
)


@dataclass(frozen=True)
class EvaluationSettings:
    """What the numbers mean; printed with them.

    Attributes:
        stable_below: eV/atom, strict upper end of "stable".
        matcher: description of the comparison behind unique and novel.
        potential: name of the potential behind the energies.
        relaxed: whether the crystals were relaxed before scoring.
        hulls: description of each hull by label (source, potential, correction, hash).
        reference: description of the set that novelty is measured against.
        extra: anything else worth printing (the ``seed``, the ``condition`` that the crystals
            were drawn under).
    """

    stable_below: float = 0.1
    matcher: str = "pymatgen StructureMatcher, ltol 0.2, stol 0.3, angle_tol 5"
    potential: str = ""
    relaxed: bool = False
    hulls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A judged set of crystals.

    Attributes:
        name: such as "base" or "tuned".
        table: one row for each requested sample, in sample order.
        summary: JSON-ready numbers of :func:`summarise`.
        structures: the crystals that were judged, relaxed where ``summary`` says so; None where
            decoding failed.
    """

    name: str
    table: pd.DataFrame
    summary: dict[str, Any]
    structures: Sequence[Structure | None]


def column(flag: str, label: str | None = None) -> str:
    """Name of the table column of ``flag`` against hull ``label`` (None: the main hull)."""
    return flag if label is None else f"{flag}@{label}"


_IN_FILES = {
    name: column_name(name.removesuffix("_per_atom"), "eV/atom")
    for name in ("e_above_hull", "energy_per_atom", "formation_energy")
}
_IN_TABLES = {written: name for name, written in _IN_FILES.items()}


def to_file(name: str) -> str:
    """What a column of an evaluation table is called in a file: energies with their unit.

    Example:
        >>> to_file("e_above_hull@chgnet"), to_file("energy_per_atom"), to_file("stable")
        ('e_above_hull_eV_per_atom@chgnet', 'energy_eV_per_atom', 'stable')
    """
    quantity, at, label = name.partition("@")
    return f"{_IN_FILES.get(quantity, quantity)}{at}{label}"


def from_file(name: str) -> str:
    """The column that :func:`to_file` named; earlier releases wrote names without units."""
    quantity, at, label = name.partition("@")
    return f"{_IN_TABLES.get(quantity, quantity)}{at}{label}"


def summarise(
    table: pd.DataFrame,
    settings: EvaluationSettings,
    *,
    hulls: Sequence[str],
    name: str = "samples",
) -> dict[str, Any]:
    """Counts, fractions with 95 % Wilson intervals, diversity and failures of one table.

    Every fraction's denominator is the number of requested samples, ``n``.
    """
    n = len(table)
    fractions = {
        flag: Fraction.of(int(table[flag].sum()), n).as_dict() for flag in FLAGS if flag in table
    }
    others = {
        label: {
            flag: Fraction.of(int(table[column(flag, label)].sum()), n).as_dict()
            for flag in PER_HULL_FLAGS
        }
        for label in hulls[1:]
    }
    described = table[table["formula"] != ""]
    return {
        "name": name,
        "n": n,
        "denominator": "all requested samples, failed ones included",
        "fractions": fractions,
        "fractions_by_hull": ({hulls[0]: {f: fractions[f] for f in PER_HULL_FLAGS}} | others)
        if hulls
        else {},
        "diversity": {
            "systems": int(described["system"].nunique()),
            "space_groups": int(
                described.loc[described["space_group"] > 0, "space_group"].nunique()
            ),
            "formulas": int(described["formula"].nunique()),
            "mean_sites": asdict(mean_interval(_known(table["n_sites"]))),
            "mean_atoms": asdict(mean_interval(_known(table["n_atoms"]))),
        },
        "elements": element_counts(described),
        "elements_stable": element_counts(table[table["stable"]] if "stable" in table else table),
        "funnel": funnel(table),
        "failures": failures(table),
        "e_above_hull": _quantiles(table),
        "by_space_group": by_space_group(table),
        "settings": {
            **asdict(settings),
            "main_hull": hulls[0] if hulls else "",
            "stable": f"energy above hull < {settings.stable_below} eV/atom (strict)",
            "interval": METHODS["fraction"],
        },
    }


def element_counts(table: pd.DataFrame) -> dict[str, int]:
    """Number of crystals that hold each element."""
    return dict(
        sorted(Counter(e for elements in table["elements"] for e in elements.split()).items())
    )


def funnel(table: pd.DataFrame) -> dict[str, int]:
    """Crystals left after each stage, each stage counted among those that passed the one before."""
    decodable, valid = table["decodable"], table["valid"]
    counts = {
        "sampled": len(table),
        "decodable": int(decodable.sum()),
        "valid": int(valid.sum()),
    }
    if "stable" in table:
        scored = valid & table["e_above_hull"].notna()
        counts["scored"] = int(scored.sum())
        counts["stable"] = int(table["stable"].sum())
        counts["unique"] = int(table["unique_stable"].sum())
        counts["novel"] = int(table["sun"].sum())
    return counts


def failures(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Reasons by stage with counts, the most frequent first; numbers in a reason are blanked."""
    undecodable = table.loc[~table["decodable"], "reason"]
    invalid = table.loc[table["decodable"] & ~table["valid"], "reason"]
    stages = {"decodable": undecodable, "valid": invalid}
    if "score_status" in table:
        lost = table[table["valid"] & (table["score_status"] != str(Status.OK))]
        stages["scored"] = lost["score_status"] + ": " + lost["score_reason"]
    return {
        stage: dict(Counter(kind_of_reason(reason) for reason in reasons).most_common())
        for stage, reasons in stages.items()
    }


def kind_of_reason(reason: str) -> str:
    """What to count a failure under: the class before the colon, or the text without numbers."""
    head, colon, _ = reason.strip().partition(":")
    if colon and head in _CLASSES:
        return head
    kind = re.sub(r"(?<![A-Za-z])[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", "…", reason.strip())
    return kind.splitlines()[0][:160] if kind else "no reason given"


def by_space_group(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Counts of the main flags for each space group that was sampled, ascending."""
    rows = []
    for space_group, part in table[table["space_group"] > 0].groupby("space_group"):
        row: dict[str, Any] = {"space_group": int(space_group), "n": len(part)}
        for flag in FLAGS:
            if flag in part:
                row[flag] = Fraction.of(int(part[flag].sum()), len(part)).as_dict()
        rows.append(row)
    return rows


def pool(evaluations: Sequence[Evaluation], name: str) -> dict[str, Any]:
    """Several seeds as one: counts and denominators added, the value of each seed kept.

    Uniqueness is judged within a seed, so that the pooled fractions estimate what one set of that
    size gives. Diversity is the mean over seeds for the same reason.
    """
    if not evaluations:
        raise ValueError("pool needs at least one evaluation")
    summaries = [evaluation.summary for evaluation in evaluations]
    first = summaries[0]

    def add(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        total = Fraction.of(sum(p["count"] for p in parts), sum(p["n"] for p in parts)).as_dict()
        return {**total, "seeds": [p["value"] for p in parts]}

    settings = dict(first["settings"])
    extra = {key: value for key, value in settings["extra"].items() if key != "seed"}
    seeds = [s["settings"]["extra"].get("seed") for s in summaries]
    settings["extra"] = extra | ({"seeds": seeds} if any(s is not None for s in seeds) else {})
    pooled = {
        **first,
        "settings": settings,
        "name": name,
        "n": sum(s["n"] for s in summaries),
        "seeds": len(summaries),
        "fractions": {
            flag: add([s["fractions"][flag] for s in summaries]) for flag in first["fractions"]
        },
        "fractions_by_hull": {
            hull: {
                flag: add([s["fractions_by_hull"][hull][flag] for s in summaries]) for flag in flags
            }
            for hull, flags in first["fractions_by_hull"].items()
        },
        "diversity": _mean_diversity([s["diversity"] for s in summaries]),
        "by_space_group": [],
        "e_above_hull": {},
    }
    for key in ("elements", "elements_stable", "funnel"):
        pooled[key] = dict(sum((Counter(s[key]) for s in summaries), Counter()))
    stages = {stage for s in summaries for stage in s["failures"]}
    pooled["failures"] = {
        stage: dict(sum((Counter(s["failures"].get(stage, {})) for s in summaries), Counter()))
        for stage in sorted(stages)
    }
    return pooled


def _mean_diversity(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    diversity: dict[str, Any] = {}
    for key in ("systems", "space_groups", "formulas"):
        diversity[key] = sum(part[key] for part in parts) / len(parts)
    for key in ("mean_sites", "mean_atoms"):
        diversity[key] = asdict(mean_interval([part[key]["value"] for part in parts]))
        if len(parts) == 1:
            diversity[key] = dict(parts[0][key])
    return diversity


def _known(values: pd.Series) -> list[float]:
    return [float(value) for value in values if math.isfinite(value) and value > 0]


def _quantiles(table: pd.DataFrame) -> dict[str, float]:
    """Median and quartiles of the energy above the main hull, eV/atom, and how many there are."""
    if "e_above_hull" not in table:
        return {}
    values = table["e_above_hull"].dropna()
    if not len(values):
        return {"n": 0}
    low, middle, high = (float(values.quantile(q)) for q in (0.25, 0.5, 0.75))
    return {"n": len(values), "quartile_1": low, "median": middle, "quartile_3": high}
