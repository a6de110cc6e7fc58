"""The sections of the page, each a piece of HTML; whatever comes from a run is escaped."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from nucleate.evaluation.compare import drawn
from nucleate.evaluation.outcome import number
from nucleate.evaluation.summary import FUNNEL
from nucleate.report import figures
from nucleate.report.data import ReportData
from nucleate.report.wording import (
    DASH,
    formula_html,
    group_html,
    percent,
    short,
    signed,
    span,
    symbol_html,
    times,
)

HEADLINES = ("stable", "sun", "stable_new_formula")
NAMES = {
    "stable": "Stable",
    "sun": "S.U.N.",
    "stable_new_formula": "Stable, new formula",
}


def headline(data: ReportData) -> str:
    """Base to tuned in large figures, with intervals, counts and denominators."""
    comparison = data.comparison
    if not comparison:
        return '<p class="empty">Base and tuned model have not been evaluated yet.</p>'
    main = comparison["tuned"]["settings"]["main_hull"]
    rows = {r["quantity"]: r for r in comparison["rows"] if r["hull"] in ("", main)}
    cards = [_card(NAMES[q], rows[q]) for q in HEADLINES if q in rows]
    cards.append(_diversity_card(comparison["guards"]))
    intervals = [
        (row["label"] + (f" ({row['hull']})" if row["hull"] not in ("", main) else ""), row)
        for quantity in ("valid", "unique", "novel", *HEADLINES)
        for row in comparison["rows"]
        if row["quantity"] == quantity
    ]
    chart = figures.interval_chart(
        [(label, row["base"], row["tuned"]) for label, row in intervals],
        title="What part of the samples is …",
    )
    return (
        f'<div class="cards">{"".join(cards)}</div>'
        f'<div class="two"><figure>{chart}</figure><div>{_definitions(data)}</div></div>'
    )


def _card(name: str, row: Mapping[str, Any]) -> str:
    a, b, gain = row["base"], row["tuned"], row["ratio"]
    told = f"{times(gain['value'])}<small>95 %: {span(gain, 1, 2)}</small>"
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p class="gain">'
        f'<span class="base">{percent(a["value"])}</span> <span class="arrow">→</span> '
        f'<span class="tuned">{percent(b["value"])}</span></p><p class="times">{told}</p>'
        f"<p class='count'>{a['count']:,} → {b['count']:,} of {b['n']:,} samples each</p></div>"
    )


def _diversity_card(guards: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(g['label']))}</td><td class='n'>{short(g['base'])} → "
        f"{short(g['tuned'])}</td><td class='n {'' if g['kept'] else 'lost'}'>"
        f"{percent(g['ratio'], 0)}</td></tr>"
        for g in guards
    )
    kept = all(g["kept"] for g in guards)
    note = "kept above all floors" if kept else "a floor is broken (marked)"
    floors = ", ".join(f"{100 * g['floor']:.0f}" for g in guards)
    return (
        f'<div class="card"><h3>Diversity</h3><table class="bare">{rows}</table>'
        f'<p class="count">tuned ÷ base: {note}; floors {floors} %</p></div>'
    )


def _definitions(data: ReportData) -> str:
    settings = data.comparison["tuned"]["settings"]
    seeds = data.comparison["seeds"]
    hulls = "".join(
        f"<li><b>{escape(str(label))}</b>{' (main)' if label == settings['main_hull'] else ''}: "
        f"{escape(_inline(info))}</li>"
        for label, info in (settings["hulls"] or {settings["main_hull"]: {}}).items()
    )
    items = [
        ("Stable", settings["stable"]),
        ("Potential", settings["potential"] or "not stated"),
        ("Crystals", "relaxed before scoring" if settings["relaxed"] else "unrelaxed, as sampled"),
        ("Same crystal", settings["matcher"]),
        ("Novel against", settings["reference"] or "not stated"),
        ("S.U.N.", "stable, first of its kind among the stable, and novel"),
        ("Denominator", f"all {data.comparison['n']:,} requested samples, failed ones included"),
        ("Seeds", f"{seeds['base']} base, {seeds['tuned']} tuned"),
        ("Drawn with", drawn(settings).removeprefix("Drawn with ") or "not stated"),
    ]
    body = "".join(f"<dt>{k}</dt><dd>{escape(str(v))}</dd>" for k, v in items)
    return f'<dl class="facts">{body}<dt>Hulls</dt><dd><ul>{hulls}</ul></dd></dl>'


def curves(data: ReportData) -> str:
    """Training curves against evaluations spent."""
    x = data.column("evaluations")
    if not any(math.isfinite(v) for v in x):
        return '<p class="empty">No step has been logged yet.</p>'

    def chart(
        title: str, y_label: str, names: Mapping[str, str], *, part: bool = False, zero: bool = True
    ) -> str:
        roles = ("tuned", "base", "third")
        series = [
            figures.Series(label, x, data.column(name), role)
            for (name, label), role in zip(names.items(), roles, strict=False)
            if any(math.isfinite(v) for v in data.column(name))
        ]
        drawn = figures.line_chart(
            series,
            title=title,
            x_label="evaluations spent",
            y_label=y_label,
            as_percent=part,
            floor_at_zero=zero,
        )
        return f"<figure>{drawn}</figure>"

    fractions = {
        "stable_fraction": "stable",
        "unique_fraction": "unique",
        "new_fraction": "stable and new",
    }
    charts = [
        chart("Reward", "mean of a batch", {"reward_mean": "reward"}, zero=False),
        chart("Stable, unique, new", "fraction of a batch", fractions, part=True),
        chart("Distance from the base model", "KL, nats a crystal", {"kl": "KL"}),
        chart("Entropy", "nats a crystal", {"entropy": "entropy"}, zero=False),
        chart("Chemical systems", "distinct, in a batch", {"n_systems": "systems"}),
        *(
            [chart("Trade-off", "hypervolume of the run's Pareto front", {"hypervolume": ""})]
            if any(math.isfinite(v) for v in data.column("hypervolume"))
            else []
        ),
        chart("Size", "mean a crystal", {"mean_sites": "sites", "mean_atoms": "atoms"}),
    ]
    spent = [(p, math.fsum(_finite(data.column(f"seconds_{p}")))) for p in _PARTS]
    bar = figures.share_bar(spent, title="Where the time went", unit="s")
    note = "Thin: every step. Bold: running mean over a sixteenth of the run."
    total = f'<figure class="wide">{bar}</figure>' if any(t for _, t in spent) else ""
    return (
        f'<div class="three">{"".join(charts)}</div><p class="note">{note}</p>{total}'
        f"{_spending(data)}"
    )


def _spending(data: ReportData) -> str:
    """What evaluations have cost, by property and by cost class."""
    last = data.metrics[-1]
    spent, cached, seconds = (
        last.get(name) or {} for name in ("spent", "spent_cached", "spent_seconds")
    )
    rows = "".join(
        f"<tr><td>{escape(kind)}</td><td>{escape(str(name))}</td><td class='n'>{count:,}</td>"
        f"<td class='n'>{cached.get(group, {}).get(name, 0):,}</td>"
        f"<td class='n'>{seconds.get(group, {}).get(name, 0.0) / 3600:,.3f}</td></tr>"
        for kind, group in (("property", "by_property"), ("cost class", "by_cost"))
        for name, count in spent.get(group, {}).items()
    )
    if not rows:
        return ""
    return (
        "<table><caption>Evaluations while tuning</caption><thead><tr><th></th><th></th>"
        '<th class="n">crystals</th><th class="n">known from other runs</th>'
        f'<th class="n">core-hours</th></tr></thead><tbody>{rows}</tbody></table>'
    )


_PARTS = ("sampling", "scoring", "updating")


def objective(data: ReportData) -> str:
    """What the objective says of base and tuned samples, with the Pareto fronts."""
    said = data.comparison.get("objective")
    if not said:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(row['label']))}</td><td>{escape(str(row['unit']))}</td>"
        f"<td class='n'>{number(row['base'])}</td><td class='n'>{number(row['tuned'])}</td></tr>"
        for row in said["rows"]
    )
    table = (
        "<table><thead><tr><th></th><th>unit</th><th class='n'>base</th><th class='n'>tuned</th>"
        f"</tr></thead><tbody>{rows}</tbody></table><p class='note'>{said['n']:,} samples each; "
        f"scores combined by {escape(str(said['combine']))}; medians are of the crystals that "
        "have a value.</p>"
    )
    pareto = said.get("pareto")
    if not pareto:
        charts = "".join(f"<figure>{_distribution(*entry)}</figure>" for entry in _values(said))
        shown = f'<div class="two"><div>{table}</div>{charts}</div>'
        return shown + _best_by_reward(said) + _refusals(said)
    names = [escape(f"{term['label']}: {term['shaping']}") for term in pareto["terms"]]
    note = (
        f"<p class='note'>Large points are the Pareto front: no crystal of the same model is as "
        f"good in every score and better in one. Hypervolume is that of the scores "
        f"({'; '.join(names)}) from {escape(str(pareto['reference']))}.{_scored(data)}</p>"
    )
    pairs = list(combinations(range(len(pareto["terms"])), 2))[:MOST_PAIRS]
    charts = "".join(f"<figure>{_trade_off(pareto, *pair)}</figure>" for pair in pairs)
    charts += "".join(f"<figure>{_distribution(*entry)}</figure>" for entry in _values(said))
    shown = f'<div class="two"><div>{table}</div>{charts}</div>{note}{_front(pareto)}'
    return shown + _best_by_reward(said) + _refusals(said)


def _scored(data: ReportData) -> str:
    """Which crystals the run itself scored, where they are not those of the samples."""
    if "screen: relaxed" not in data.manifest.get("properties", {}):
        return ""
    return (
        " These samples are scored as drawn. The run scored relaxed crystals: their front is in "
        "crystals/pareto.csv and crystals/pareto/."
    )


def _values(said: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Properties with values that differ, which can be shown as a distribution."""
    return [
        (name, values)
        for name, values in said.get("values", {}).items()
        if len({*values["base"], *values["tuned"]}) > 2
    ]


def _distribution(name: str, values: Mapping[str, Any]) -> str:
    """Values of base and tuned samples; a hundredth at each end is in the outer bins."""
    both = sorted(values["base"] + values["tuned"])
    low, high = both[len(both) // 100], both[-1 - len(both) // 100]
    unit = f", {values['unit']}" if values["unit"] else ""
    return figures.histogram(
        [(side, side, values[side]) for side in ("base", "tuned")],
        title=f"{name} of base and tuned samples",
        x_label=f"{name}{unit} (outer bins hold the rest)",
        y_label="crystals",
        low=low,
        high=high if high > low else low + 1.0,
        bins=40,
    )


def _best_by_reward(said: Mapping[str, Any]) -> str:
    """The tuned samples of the highest reward, and which of them the training set holds."""
    best = said.get("best")
    if not best:
        return ""
    units = {name: values["unit"] for name, values in said["values"].items()}
    names = [name for name in best[0]["values"] if name != "e_above_hull"]
    heads = "".join(
        f"<th class='n'>{escape(name)} {escape(units.get(name, ''))}</th>" for name in names
    )
    rows = "".join(
        f"<tr><td>{formula_html(row['formula'])}</td><td>{group_html(row['space_group'])}</td>"
        f"<td class='n'>{number(row['reward'])}</td>"
        + "".join(f"<td class='n'>{number(row['values'][name])}</td>" for name in names)
        + f"<td class='n'>{number(row['e_above_hull'])}</td>"
        f"<td>{escape(row['known_as']) or 'no'}</td></tr>"
        for row in best
    )
    return (
        "<details open><summary>Tuned samples of the highest reward</summary><table><thead><tr><th>"
        f"formula</th><th>space group</th><th class='n'>reward</th>{heads}<th class='n'>energy "
        f"above hull eV/atom</th><th>in the training set</th></tr></thead><tbody>{rows}</tbody>"
        "</table></details>"
    )


MOST_PAIRS = 6
"""Pairs of terms that are drawn."""


def _trade_off(pareto: Mapping[str, Any], i: int, j: int) -> str:
    labels = [
        term["label"] + (f", {term['unit']}" if term["unit"] else "")
        for term in (pareto["terms"][i], pareto["terms"][j])
    ]

    def points(values: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
        chosen = ((row[i], row[j]) for row in values)
        return [(x, y) for x, y in chosen if x is not None and y is not None]

    groups = [
        (side, side, points(pareto[side]["values"]), points([r["values"] for r in front]))
        for side in ("base", "tuned")
        for front in [pareto[side]["front"]]
    ]
    return figures.scatter_chart(
        groups, title="Base against tuned samples", x_label=labels[0], y_label=labels[1]
    )


def _front(pareto: Mapping[str, Any]) -> str:
    heads = "".join(
        f"<th class='n'>{escape(term['label'])} {escape(term['unit'])}</th>"
        for term in pareto["terms"]
    )
    rows = "".join(
        f"<tr><td>{side}</td><td>{formula_html(row['formula'])}</td>"
        f"<td>{group_html(row['space_group'])}</td>"
        + "".join(f"<td class='n'>{number(value)}</td>" for value in row["values"])
        + "</tr>"
        for side in ("tuned", "base")
        for row in pareto[side]["front"]
    )
    return (
        "<details><summary>Crystals on the fronts</summary><table><thead><tr><th></th><th>formula"
        f"</th><th>space group</th>{heads}</tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _refusals(said: Mapping[str, Any]) -> str:
    reasons = sorted(
        {reason for side in ("base", "tuned") for reason in said["lost"][side]},
        key=lambda reason: -sum(said["lost"][side].get(reason, 0) for side in ("base", "tuned")),
    )
    if not reasons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(reason)}</td><td class='n'>{said['lost']['base'].get(reason, 0):,}</td>"
        f"<td class='n'>{said['lost']['tuned'].get(reason, 0):,}</td></tr>"
        for reason in reasons
    )
    return (
        "<details><summary>Why crystals have no score</summary><table><thead><tr><th>reason</th>"
        f"<th class='n'>base</th><th class='n'>tuned</th></tr></thead><tbody>{rows}</tbody></table>"
        "</details>"
    )


def energies(data: ReportData) -> str:
    """Histogram of energies above hull, and the funnel with reasons for failures."""
    groups = [(name, name, values) for name, values in data.e_above_hull.items()]
    settings = data.comparison.get("tuned", {}).get("settings", {})
    stable = settings.get("stable_below", 0.1)
    chart = figures.histogram(
        groups,
        title="Energy above hull" + (f", {settings['main_hull']} hull" if settings else ""),
        x_label="energy above hull, eV/atom (outer bins hold the rest)",
        y_label="crystals",
        low=-0.2,
        high=1.0,
        bins=48,
        threshold=(stable, f"stable below {stable:g}"),
    )
    sides = [
        (name, data.comparison[name]["funnel"])
        for name in ("base", "tuned")
        if data.comparison.get(name)
    ]
    stages = [s for s in FUNNEL if any(s in counts for _, counts in sides)]
    funnel = f"<figure>{figures.funnel_chart(stages, sides)}</figure>" if stages else ""
    judged = f'<div class="two"><figure>{chart}</figure>{funnel}</div>{_failures(data)}'
    return judged + _screening(data)


def _screening(data: ReportData) -> str:
    """What the screen left of the crystals of all steps, and the reasons why others were lost."""
    rows = [row for row in data.metrics if isinstance(row.get("funnel"), Mapping)]
    if not rows:
        return ""
    left: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for row in rows:
        left.update({str(k): int(v) for k, v in row["funnel"].items()})
        lost.update({str(k): int(v) for k, v in (row.get("failures") or {}).items()})
    chart = figures.funnel_chart(
        list(rows[-1]["funnel"]),
        [(f"{len(rows)} steps", left)],
        "Tuning: crystals left after each stage of the screen",
    )
    reasons = "".join(
        f"<tr><td>{escape(reason)}</td><td class='n'>{count:,}</td></tr>"
        for reason, count in lost.most_common(20)
    )
    table = (
        "<table><caption>Why crystals were lost in tuning</caption><thead><tr><th>reason</th>"
        f"<th class='n'>crystals</th></tr></thead><tbody>{reasons}</tbody></table>"
    )
    return f'<div class="two"><figure>{chart}</figure><div>{table if lost else ""}</div></div>'


def _failures(data: ReportData) -> str:
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for side in ("base", "tuned"):
        for stage, reasons in data.comparison.get(side, {}).get("failures", {}).items():
            for reason, count in reasons.items():
                counts.setdefault((stage, reason), {})[side] = count
    if not counts:
        return ""
    order = sorted(counts.items(), key=lambda item: -sum(item[1].values()))
    rows = "".join(
        f"<tr><td>{escape(_LOST[stage])}</td><td>{escape(reason)}</td>"
        f"<td class='n'>{sides.get('base', 0):,}</td>"
        f"<td class='n'>{sides.get('tuned', 0):,}</td></tr>"
        for (stage, reason), sides in order[:20]
    )
    reasons = f"{len(counts)} reason{'s' * (len(counts) > 1)}"
    return (
        f"<details><summary>Why crystals were lost ({reasons})</summary>"
        "<table><thead><tr><th>not</th><th>reason</th><th class='n'>base</th>"
        f"<th class='n'>tuned</th></tr></thead><tbody>{rows}</tbody></table></details>"
    )


_LOST = {"decodable": "decodable", "valid": "valid", "scored": "scored"}


def elements(data: ReportData) -> str:
    """Periodic table of how the element distribution moved, with the largest changes listed."""
    shift = data.comparison.get("elements")
    if not shift:
        return '<p class="empty">Shown once base and tuned model have been evaluated.</p>'
    changes = {
        str(row["element"]): (
            100 * row["change"],
            f"{row['element']}: {100 * row['base']:.1f} % of base samples, "
            f"{100 * row['tuned']:.1f} % of tuned samples",
        )
        for row in shift["rows"]
    }
    chart = figures.periodic_table(
        changes,
        title="Samples that hold the element, tuned minus base, percentage points",
        legend="orange: more often after tuning · blue: less often · pale: unchanged or absent",
    )
    movers = "".join(
        f"<tr><td>{escape(str(r['element']))}</td><td class='n'>{100 * r['base']:.1f}</td>"
        f"<td class='n'>{100 * r['tuned']:.1f}</td>"
        f"<td class='n'>{signed(100 * r['change'])}</td></tr>"
        for r in shift["rows"][:10]
    )
    distance = shift["total_variation"]
    told = DASH if distance is None else f"{distance:.3f}"
    stable = data.comparison.get("elements_stable", {}).get("total_variation")
    among = f" ({stable:.3f} among the stable)" if stable is not None else ""
    return (
        f'<div class="wide-narrow"><figure>{chart}</figure><div><table><caption>Largest changes, '
        f"% of samples</caption><thead><tr><th></th><th class='n'>base</th><th class='n'>tuned</th>"
        f"<th class='n'>change</th></tr></thead><tbody>{movers}</tbody></table>"
        f'<p class="note">Total variation distance {told}{among}; 0 is no shift, 1 no element in '
        "common.</p></div></div>"
    )


def space_groups(data: ReportData) -> str:
    """Sortable table by space group."""
    base, tuned = data.space_groups.get("base", {}), data.space_groups.get("tuned", {})
    groups = sorted(
        set(base) | set(tuned), key=lambda g: -(base.get(g, _NONE)[0] + tuned.get(g, _NONE)[0])
    )
    if not groups:
        return '<p class="empty">Shown once the model has been evaluated.</p>'
    rows = []
    for group in groups:
        cells = [f"<td data-v='{group}'><b>{group}</b> {symbol_html(group)}</td>"]
        for side, css in ((base, "base"), (tuned, "tuned")):
            n, stable, sun = side.get(group, _NONE)
            part = stable / n if n else math.nan
            shown = DASH if not n else f"{100 * part:.0f} %"
            cells.append(f"<td class='n' data-v='{n}'>{n:,}</td>")
            cells.append(
                f"<td class='n meter' data-v='{part if n else ''}'><span class='fill {css}' "
                f"style='width:{100 * part if n else 0:.0f}%'></span><span>{shown}</span></td>"
            )
            cells.append(f"<td class='n' data-v='{sun}'>{sun:,}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    sides = "".join(
        f"<th class='n'><button>{s} samples</button></th><th class='n'><button>{s} stable</button>"
        f"</th><th class='n'><button>{s} S.U.N.</button></th>"
        for s in ("base", "tuned")
    )
    return (
        '<div class="scroll tall"><table class="sortable"><thead><tr><th><button>space group'
        f"</button></th>{sides}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='note'>{len(groups)} space groups, the most frequent first. Few samples make a "
        "fraction of one group uncertain: 20 samples leave about ±20 points.</p>"
    )


_NONE = (0, 0, 0)


def table_of_results(data: ReportData) -> str:
    """Every fraction, both hulls, with counts, differences and ratios."""
    if not data.comparison:
        return '<p class="empty">Shown once base and tuned model have been evaluated.</p>'
    rows = []
    for row in data.comparison["rows"]:
        a, b, d, r = row["base"], row["tuned"], row["difference"], row["ratio"]
        rows.append(
            f"<tr><td>{escape(str(row['label']))}</td><td>{escape(str(row['hull'])) or DASH}</td>"
            f"<td class='n'>{a['count']:,}</td><td class='n'>{percent(a['value'])}<small> "
            f"{span(a)}</small></td><td class='n'>{b['count']:,}</td><td class='n'>"
            f"{percent(b['value'])}<small> {span(b)}</small></td><td class='n'>"
            f"{signed(100 * d['value'])}<small> {signed(100 * d['low'])} to "
            f"{signed(100 * d['high'])}</small></td><td class='n'>{times(r['value'])}<small> "
            f"{span(r, 1, 2)}</small></td></tr>"
        )
    methods = "; ".join(f"{k}: {v}" for k, v in data.comparison["methods"].items())
    return (
        '<div class="scroll"><table><thead><tr><th>quantity</th><th>hull</th>'
        '<th class="n">base</th><th class="n">fraction [95 %]</th>'
        '<th class="n">tuned</th><th class="n">fraction [95 %]'
        '</th><th class="n">difference, points</th><th class="n">ratio</th></tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div><p class='note'>Counts out of "
        f"{data.comparison['n']:,} samples each. Intervals: {escape(methods)}.</p>"
    )


def appendix(data: ReportData) -> str:
    """Recipe, manifest and evaluation settings."""
    settings = data.comparison.get("tuned", {}).get("settings", {})
    parts = [
        ("Recipe", data.recipe),
        ("Manifest: versions, hashes, seeds, command", _pretty(data.manifest)),
        ("Evaluation settings", _pretty(settings)),
    ]
    return "".join(
        f"<details><summary>{name}</summary><pre>{escape(body)}</pre></details>"
        for name, body in parts
        if body
    )


def _finite(values: Sequence[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _inline(info: Any) -> str:
    if isinstance(info, Mapping):
        return "; ".join(f"{k} {v}" for k, v in info.items()) or "not described"
    return str(info)


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) if content else ""
