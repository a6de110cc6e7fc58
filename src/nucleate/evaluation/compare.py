"""Base against tuned: differences and ratios with intervals, and what the gain was paid with.

A gain in stability means little if the samples have collapsed, so the comparison carries guards:
chemical systems, space groups, sites and atoms of the tuned model as a part of the base model's,
and the shift of the element distribution (total variation distance, elements that moved most).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.errors import counted
from nucleate.evaluation.intervals import (
    METHODS,
    Fraction,
    difference,
    ratio,
    seed_ratio,
)
from nucleate.evaluation.outcome import markdown
from nucleate.evaluation.summary import pool, to_file

if TYPE_CHECKING:
    import pandas as pd

    from nucleate.evaluation.summary import Evaluation

GUARDS = {"systems": 0.85, "space_groups": 0.85, "mean_sites": 0.75, "mean_atoms": 0.75}
LABELS = {
    "decodable": "decodable",
    "valid": "valid",
    "charge_balanced": "charge balanced",
    "stable": "stable",
    "on_hull": "on or below the hull",
    "metastable": "metastable",
    "unique": "unique",
    "novel": "novel",
    "new_formula": "new formula",
    "stable_new_formula": "stable, new formula",
    "sun": "S.U.N.",
    "systems": "chemical systems",
    "space_groups": "space groups",
    "mean_sites": "mean sites",
    "mean_atoms": "mean atoms",
}
DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
RESULTS_CSV = "results.csv"
RESULTS_MARKDOWN = "results.md"
COMPARISON_JSON = "comparison.json"


def compare(base: Sequence[Evaluation], tuned: Sequence[Evaluation]) -> dict[str, Any]:
    """Compare evaluations of equal sizes, one for each seed.

    Args:
        base: evaluations of the base model.
        tuned: evaluations of the tuned model against the same hulls.

    Returns:
        JSON-ready dictionary: ``base`` and ``tuned`` (pooled summaries), ``rows`` (one for each
        fraction and hull), ``guards``, ``elements`` and ``methods``.

    Raises:
        ValueError: the two sides differ in size or were not judged alike.
    """
    before, after = pool(base, "base"), pool(tuned, "tuned")
    sizes = [sorted(e.summary["n"] for e in side) for side in (base, tuned)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"base has sets of {sizes[0]} samples, tuned of {sizes[1]}: only equal sample counts "
            "are compared, because uniqueness falls with the number of samples"
        )
    for key in ("stable", "relaxed", "potential", "matcher", "reference"):
        one, other = before["settings"][key], after["settings"][key]
        if one != other:
            raise ValueError(f"judged differently: {key} is {one!r} for base, {other!r} for tuned")
    missing = set(before["fractions_by_hull"]) ^ set(after["fractions_by_hull"])
    if missing:
        raise ValueError(f"hulls used on one side only: {', '.join(sorted(missing))}")
    return {
        "n": before["n"],
        "seeds": {"base": before["seeds"], "tuned": after["seeds"]},
        "base": before,
        "tuned": after,
        "rows": _rows(before, after),
        "guards": guards(before, after),
        "elements": element_shift(before["elements"], after["elements"], before["n"]),
        "elements_stable": element_shift(
            before["elements_stable"], after["elements_stable"], before["n"]
        ),
        "methods": METHODS,
    }


def _rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    per_hull: dict[str, Mapping[str, Any]] = dict(before["fractions_by_hull"])
    main = next(iter(per_hull), "")
    for flag, fraction in before["fractions"].items():
        hull = main if flag in per_hull.get(main, {}) else ""
        rows.append(_row(flag, hull, fraction, after["fractions"][flag]))
    for hull, flags in list(per_hull.items())[1:]:
        for flag, fraction in flags.items():
            rows.append(_row(flag, hull, fraction, after["fractions_by_hull"][hull][flag]))
    return rows


def _row(
    quantity: str, hull: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    a = Fraction.of(before["count"], before["n"])
    b = Fraction.of(after["count"], after["n"])
    row: dict[str, Any] = {
        "quantity": quantity,
        "label": LABELS.get(quantity, quantity),
        "hull": hull,
        "base": a.as_dict(),
        "tuned": b.as_dict(),
        "difference": asdict(difference(a, b)),
        "ratio": asdict(ratio(a, b)),
    }
    seeds_a, seeds_b = before.get("seeds", []), after.get("seeds", [])
    if len(seeds_a) == len(seeds_b) >= 2 and all(seeds_a):
        row["seed_ratios"] = [y / x for x, y in zip(seeds_a, seeds_b, strict=True)]
        row["seed_ratio"] = asdict(seed_ratio(row["seed_ratios"]))
    return row


def guards(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Diversity of the tuned model as a part of the base model's, with the floor to keep.

    A quantity that was not measured, such as sites where no tokens were given, is left out.
    """
    rows = []
    for key, floor in GUARDS.items():
        a, b = before["diversity"][key], after["diversity"][key]
        if isinstance(a, Mapping):
            a, b = a["value"], b["value"]
        if not a or math.isnan(a):
            continue
        part = b / a
        rows.append(
            {
                "quantity": key,
                "label": LABELS[key],
                "base": a,
                "tuned": b,
                "ratio": part,
                "floor": floor,
                "kept": part >= floor,
            }
        )
    return rows


def element_shift(before: Mapping[str, int], after: Mapping[str, int], n: int) -> dict[str, Any]:
    """How the element distribution moved.

    Args:
        before: crystals that hold each element, base model.
        after: the same, tuned model.
        n: samples on each side.

    Returns:
        ``total_variation``: half the sum of absolute differences between the two normalised
        distributions over elements, 0 (same) to 1 (disjoint). ``rows``: for each element the
        fraction of samples that hold it on both sides and the change, largest change first.
    """
    total_a, total_b = sum(before.values()), sum(after.values())
    elements = sorted(set(before) | set(after))
    distance = math.nan
    if total_a and total_b:
        distance = 0.5 * math.fsum(
            abs(after.get(e, 0) / total_b - before.get(e, 0) / total_a) for e in elements
        )
    rows: list[dict[str, Any]] = []
    for element in elements:
        a, b = before.get(element, 0), after.get(element, 0)
        rows.append(
            {
                "element": element,
                "base_count": a,
                "tuned_count": b,
                "base": a / n if n else math.nan,
                "tuned": b / n if n else math.nan,
                "change": (b - a) / n if n else math.nan,
            }
        )
    rows.sort(key=lambda row: (-abs(row["change"]), row["element"]))
    return {"total_variation": distance, "rows": rows}


def to_markdown(comparison: Mapping[str, Any]) -> str:
    """Human-readable table: every fraction with count, denominator and interval."""
    n = comparison["n"]
    seeds = comparison["seeds"]
    drawn_by = counted(seeds["base"], "seed")
    if seeds["tuned"] != seeds["base"]:
        drawn_by += f" and {counted(seeds['tuned'], 'seed')}"
    lines = [
        (
            f"Base against tuned, {n:,} samples each ({drawn_by}); "
            "every denominator counts all requested samples."
        ),
        *basis(comparison),
        "",
        (
            "| quantity | hull | base % [95 %] | count | tuned % [95 %] | count | "
            "difference, points | ratio [95 %] |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in comparison["rows"]:
        a, b = row["base"], row["tuned"]
        lines.append(
            f"| {row['label']} | {row['hull'] or DASH} | {_percent(a)} | {a['count']} | "
            f"{_percent(b)} | {b['count']} | {_points(row['difference'])} | "
            f"{_times(row['ratio'])} |"
        )
    lines += [
        "",
        "| diversity | base | tuned | tuned / base | floor | kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in comparison["guards"]:
        lines.append(
            f"| {row['label']} | {row['base']:.4g} | {row['tuned']:.4g} | {row['ratio']:.2f} | "
            f"{row['floor']:.2f} | "
            f"{'yes' if row['kept'] else 'NO'} |"
        )
    shift = comparison["elements"]
    movers = ", ".join(
        f"{row['element']} {100 * row['base']:.1f} → {100 * row['tuned']:.1f} %"
        for row in shift["rows"][:12]
    )
    lines += [
        "",
        (
            f"Element distribution: total variation distance {shift['total_variation']:.3f}; "
            f"samples that hold the element, largest changes: {movers or 'none'}."
        ),
        "",
        *(markdown(comparison["objective"]) if "objective" in comparison else ()),
        *([""] if "objective" in comparison else ()),
        "Methods: " + "; ".join(f"{what}: {how}" for what, how in comparison["methods"].items()),
    ]
    return "\n".join(lines) + "\n"


def basis(comparison: Mapping[str, Any]) -> list[str]:
    """What the numbers of a comparison mean, in sentences: definitions, then how it was drawn.

    Args:
        comparison: as :func:`compare` gives it.
    """
    lines = [definitions(comparison["tuned"]["settings"])]
    sides = [(name, drawn(comparison[name]["settings"])) for name in ("base", "tuned")]
    if sides[0][1] == sides[1][1]:
        return lines + [line for _, line in sides[:1] if line]
    return lines + [f"{name.capitalize()}: {line}" for name, line in sides if line]


def definitions(settings: Mapping[str, Any]) -> str:
    """What the numbers of a judged set mean; ``settings`` are those of its summary."""
    return (
        f"Stable: {settings['stable']}; main hull {settings['main_hull'] or 'none'}; potential "
        f"{settings['potential'] or 'not stated'}; crystals "
        f"{'relaxed' if settings['relaxed'] else 'unrelaxed'}; same crystal: "
        f"{settings['matcher']}; novel against: {settings['reference'] or 'not stated'}."
    )


def drawn(settings: Mapping[str, Any]) -> str:
    """The condition that a judged set was drawn under; empty where none is stated."""
    stated = settings.get("extra", {}).get("condition")
    condition = dict(stated) if isinstance(stated, Mapping) else {}
    condition |= {f"elements: {key}": v for key, v in condition.pop("elements", {}).items()}
    told = "; ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in condition.items())
    return f"Drawn with {told}." if told else ""


def _plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    words = {"None": "all", "True": "yes", "False": "no"}
    return words.get(str(value), str(value))


def _percent(part: Mapping[str, float]) -> str:
    return f"{100 * part['value']:.1f} [{100 * part['low']:.1f}, {100 * part['high']:.1f}]"


def _points(interval: Mapping[str, float]) -> str:
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _times(interval: Mapping[str, float]) -> str:
    if math.isnan(interval["value"]):
        return DASH
    value = "∞" if math.isinf(interval["value"]) else f"{interval['value']:.2f}"
    return f"{TIMES}{value} [{interval['low']:.2f}, {interval['high']:.2f}]"


def to_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Flat rows for ``results.csv``."""
    flat = []
    crystals = "relaxed" if comparison["tuned"]["settings"]["relaxed"] else "unrelaxed"
    for row in comparison["rows"]:
        out: dict[str, Any] = {
            "quantity": row["quantity"],
            "hull": row["hull"],
            "crystals": crystals,
        }
        for side in ("base", "tuned"):
            for key in ("count", "n", "value", "low", "high"):
                out[f"{side}_{key}"] = row[side][key]
        for what in ("difference", "ratio"):
            for key in ("value", "low", "high"):
                out[f"{what}_{key}"] = row[what][key]
        flat.append(out)
    for row in comparison["guards"]:
        flat.append(
            {
                "quantity": row["quantity"],
                "hull": "",
                "crystals": crystals,
                "base_value": row["base"],
                "tuned_value": row["tuned"],
                "ratio_value": row["ratio"],
            }
        )
    for row in comparison.get("objective", {}).get("rows", ()):
        flat.append(
            {
                "quantity": row["quantity"],
                "unit": row["unit"],
                "hull": "",
                "crystals": "as the objective has them",
                "base_value": row["base"],
                "tuned_value": row["tuned"],
            }
        )
    return flat


def without_nan(value: Any) -> Any:
    """The same nest of dictionaries and lists with NaN and infinities as None, as JSON wants."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return value


def write_json(value: Any, path: Path) -> None:
    """Write strict JSON; the file appears whole or not at all."""
    _write(
        path,
        json.dumps(without_nan(value), indent=1, ensure_ascii=False, allow_nan=False),
    )


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, with an empty cell for NaN."""
    _write(path, table.to_csv(index=False))


def write_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Write ``<name>.csv`` (one row a crystal) and ``<name>.json`` (summary; eV/atom)."""
    write_table(evaluation.table.rename(columns=to_file), directory / f"{evaluation.name}.csv")
    write_json(evaluation.summary, directory / f"{evaluation.name}.json")


def write_comparison(comparison: Mapping[str, Any], directory: Path) -> None:
    """Write ``comparison.json``, ``results.csv`` and ``results.md``."""
    import pandas as pd

    write_json(comparison, directory / COMPARISON_JSON)
    write_table(pd.DataFrame(to_rows(comparison)), directory / RESULTS_CSV)
    _write(directory / RESULTS_MARKDOWN, to_markdown(comparison))


def _write(path: Path, text: str) -> None:
    from nucleate.structures.writing import replacing

    with replacing(path) as stream:
        stream.write(text)
