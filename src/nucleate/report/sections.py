"""The sections of the page, each a piece of HTML; whatever comes from a run is escaped."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nucleate.evaluation.summary import FUNNEL
from nucleate.report import figures
from nucleate.report.data import ReportCrystal, ReportData

DOUBTFUL_BELOW = -0.3  # eV/atom; so far below the hull the potential is the likelier explanation
GALLERY = 8
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
        for row in comparison["rows"]
        if row["quantity"] in ("valid", "stable", "sun", "stable_new_formula", "unique", "novel")
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
    a, b, times = row["base"], row["tuned"], row["ratio"]
    gain = "–" if times["value"] is None else f"×{times['value']:.2f}"
    if times["value"] is not None:
        gain += f"<small>95 %: {times['low']:.2f} to {times['high']:.2f}</small>"
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p class="gain">'
        f'<span class="base">{_pc(a["value"])}</span> <span class="arrow">→</span> '
        f'<span class="tuned">{_pc(b["value"])}</span></p><p class="times">{gain}</p>'
        f"<p class='count'>{a['count']:,} → {b['count']:,} of {b['n']:,} samples each</p></div>"
    )


def _diversity_card(guards: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(g['label']))}</td><td class='n'>{_short(g['base'])} → "
        f"{_short(g['tuned'])}</td><td class='n {'' if g['kept'] else 'lost'}'>"
        f"{_pc(g['ratio'], 0)}</td></tr>"
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
        chart("Size", "mean a crystal", {"mean_sites": "sites", "mean_atoms": "atoms"}),
    ]
    times = [(p, math.fsum(_finite(data.column(f"seconds_{p}")))) for p in _PARTS]
    bar = figures.share_bar(times, title="Where the time went", unit="s")
    note = "Thin: every step. Bold: running mean over a sixteenth of the run."
    total = f'<figure class="wide">{bar}</figure>' if any(t for _, t in times) else ""
    return f'<div class="three">{"".join(charts)}</div><p class="note">{note}</p>{total}'


_PARTS = ("sampling", "scoring", "updating")


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
    last = data.metrics[-1].get("funnel") if data.metrics else None
    if not sides and isinstance(last, Mapping):
        sides = [("last step", {str(k): int(v) for k, v in last.items()})]
    stages = [s for s in FUNNEL if any(s in counts for _, counts in sides)]
    funnel = f"<figure>{figures.funnel_chart(stages, sides)}</figure>" if stages else ""
    return f'<div class="two"><figure>{chart}</figure>{funnel}</div>{_failures(data)}'


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
        f"<td class='n'>{sides.get('base', 0):,}</td><td class='n'>{sides.get('tuned', 0):,}</td></tr>"
        for (stage, reason), sides in order[:20]
    )
    return (
        f"<details><summary>Why crystals were lost ({len(counts)} reasons)</summary>"
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
        f"<td class='n'>{100 * r['tuned']:.1f}</td><td class='n'>{_signed(100 * r['change'])}</td></tr>"
        for r in shift["rows"][:10]
    )
    distance = shift["total_variation"]
    told = "–" if distance is None else f"{distance:.3f}"
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
        cells = [f"<td data-v='{group}'><b>{group}</b> {escape(_symbol(group))}</td>"]
        for side, css in ((base, "base"), (tuned, "tuned")):
            n, stable, sun = side.get(group, _NONE)
            part = stable / n if n else math.nan
            shown = "–" if not n else f"{100 * part:.0f} %"
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


def crystals(data: ReportData, cifs: Sequence[str], drawings: Sequence[Mapping[str, Any]]) -> str:
    """Gallery of drawn cells, and the sortable table with downloads."""
    if not data.crystals:
        return '<p class="empty">No crystal has been written yet.</p>'
    labels = list(dict.fromkeys(label for c in data.crystals for label in c.e_above_hull))
    gallery = "".join(
        _tile(i, data.crystals[i], drawings[i], labels) for i in range(min(GALLERY, len(cifs)))
    )
    heads = "".join(
        f"<th class='n'><button>E_hull {escape(s)}, eV/atom</button></th>" for s in labels
    )
    rows = "".join(
        _crystal_row(i, crystal, cif, labels)
        for i, (crystal, cif) in enumerate(zip(data.crystals, cifs, strict=True))
    )
    everything = _uri(extxyz(data.crystals), "chemical/x-xyz")
    doubtful = any(v < DOUBTFUL_BELOW for c in data.crystals for v in c.e_above_hull.values())
    warning = (
        f"<p class='note warn'>† more than {-DOUBTFUL_BELOW} eV/atom below the hull: more likely a "
        "failure of the potential than a discovery.</p>"
        if doubtful
        else ""
    )
    return (
        f'<div class="gallery">{gallery}</div><p class="note">Drag or use the arrow keys to rotate, '
        "+ and − to zoom. Conventional cells; bonds up to 1.15 times the sum of covalent radii, "
        f'between metals none.</p><p><a class="button" download="crystals.extxyz" '
        f'href="{everything}">Download all {len(cifs)} as extended XYZ</a></p>'
        '<div class="scroll tall"><table class="sortable"><thead><tr><th class="n"><button>rank'
        "</button></th><th><button>formula</button></th><th><button>space group</button></th>"
        f"<th class='n'><button>atoms</button></th>{heads}<th><button>new?</button></th>"
        "<th class='n'><button>hull support</button></th><th>view</th><th>file</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{warning}<p class='note'>Atoms: in the primitive cell. "
        "Hull support: competing phases that the main hull knows; with few of them, stability was "
        "tested against little.</p>"
        '<dialog id="large" aria-labelledby="large-title"><h3 id="large-title"></h3>'
        '<canvas class="cell" id="large-cell" tabindex="0" role="img" '
        'aria-label="unit cell, rotatable with the arrow keys"></canvas><p class="legend" '
        'id="large-legend"></p><button id="large-close" class="button">Close</button></dialog>'
    )


def _tile(i: int, crystal: ReportCrystal, drawn: Mapping[str, Any], labels: Sequence[str]) -> str:
    formula = formula_of(crystal)
    legend = "".join(
        f"<span><i style='background:{escape(e['colour'], quote=True)}'></i>"
        f"{escape(e['symbol'])}</span>"
        for e in drawn["elements"]
    )
    energy = _energy(crystal.e_above_hull.get(labels[0], math.nan)) if labels else "–"
    group = _group_name(crystal.space_group)
    return (
        f'<figure class="tile"><canvas class="cell" data-cell="{i}" tabindex="0" role="img" '
        f'aria-label="unit cell of {escape(formula, quote=True)}, rotatable with the arrow keys">'
        f"</canvas><figcaption><b>{_subscripts(formula)}</b> <span>{escape(group)}</span>"
        f'<span class="energy">{energy} eV/atom</span>'
        f'<span class="legend">{legend}</span></figcaption></figure>'
    )


def _crystal_row(i: int, crystal: ReportCrystal, cif: str, labels: Sequence[str]) -> str:
    formula = formula_of(crystal)
    group = _group_name(crystal.space_group)
    values = [crystal.e_above_hull.get(label, math.nan) for label in labels]
    cells = "".join(
        f"<td class='n' data-v='{v if math.isfinite(v) else ''}'>{_energy(v)}</td>" for v in values
    )
    new = "new formula" if crystal.new_formula else "new structure" if crystal.new else "known"
    if crystal.sun:
        new = f"{new}, S.U.N."
    support = "" if crystal.hull_support is None else str(crystal.hull_support)
    name = "".join(c if c.isalnum() else "_" for c in formula)[:60]
    return (
        f'<tr id="crystal-{i}" data-title="{escape(f"{formula} · {group}", quote=True)}">'
        f"<td class='n' data-v='{i + 1}'>{i + 1}</td><td data-v=\"{escape(formula, quote=True)}\">"
        f"<b>{_subscripts(formula)}</b></td><td data-v='{crystal.space_group}'>{escape(group)}</td>"
        f"<td class='n'>{len(crystal.structure)}</td>{cells}<td>{new}</td>"
        f"<td class='n' data-v='{support}'>{support or '–'}</td>"
        f'<td><button class="link" data-show="{i}" aria-label="view '
        f'{escape(formula, quote=True)}">view</button></td>'
        f'<td><a download="{i + 1:03d}_{name}.cif" href="{_uri(cif, "chemical/x-cif")}">CIF</a></td></tr>'
    )


def table_of_results(data: ReportData) -> str:
    """Every fraction, both hulls, with counts, differences and ratios."""
    if not data.comparison:
        return '<p class="empty">Shown once base and tuned model have been evaluated.</p>'
    rows = []
    for row in data.comparison["rows"]:
        a, b, d, r = row["base"], row["tuned"], row["difference"], row["ratio"]
        times = "–" if r["value"] is None else f"×{r['value']:.2f}"
        rows.append(
            f"<tr><td>{escape(str(row['label']))}</td><td>{escape(str(row['hull'])) or '–'}</td>"
            f"<td class='n'>{a['count']:,}</td><td class='n'>{_pc(a['value'])}<small> "
            f"{_range(a)}</small></td><td class='n'>{b['count']:,}</td><td class='n'>"
            f"{_pc(b['value'])}<small> {_range(b)}</small></td><td class='n'>"
            f"{_signed(100 * d['value'])}<small> {_signed(100 * d['low'])} to "
            f"{_signed(100 * d['high'])}</small></td><td class='n'>{times}<small> "
            f"{r['low']:.2f} to {r['high']:.2f}</small></td></tr>"
        )
    methods = "; ".join(f"{k}: {v}" for k, v in data.comparison["methods"].items())
    return (
        '<div class="scroll"><table><thead><tr><th>quantity</th><th>hull</th><th class="n">base</th>'
        '<th class="n">fraction [95 %]</th><th class="n">tuned</th><th class="n">fraction [95 %]'
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


def extxyz(found: Sequence[ReportCrystal]) -> str:
    """All crystals as one extended XYZ text, energies above hull (eV/atom) in the comment line."""
    import io

    from ase.io import write
    from pymatgen.io.ase import AseAtomsAdaptor

    frames = []
    for crystal in found:
        atoms = AseAtomsAdaptor.get_atoms(crystal.structure, msonable=False)
        atoms.info = {"formula": formula_of(crystal), "space_group": crystal.space_group}
        for label, value in crystal.e_above_hull.items():
            if math.isfinite(value):
                atoms.info[f"e_above_hull_{label}_eV_per_atom"] = value
        frames.append(atoms)
    stream = io.StringIO()
    write(stream, frames, format="extxyz")
    return stream.getvalue()


def formula_of(crystal: ReportCrystal) -> str:
    """Formula as given, or the structure's reduced one."""
    return crystal.formula or str(crystal.structure.composition.reduced_formula)


def _subscripts(formula: str) -> str:
    out, digits = [], ""
    for character in formula + " ":
        if character.isdigit() or (character == "." and digits):
            digits += character
            continue
        if digits:
            out.append(f"<sub>{digits}</sub>")
            digits = ""
        out.append(escape(character))
    return "".join(out).strip()


def _group_name(number: int) -> str:
    return f"{_symbol(number)} ({number})" if number else "unknown"


def _symbol(number: int) -> str:
    """Hermann–Mauguin symbol of a space group number."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return str(sg_symbol_from_int_number(number)) if 1 <= number <= 230 else ""


def _uri(content: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}"


def _energy(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return _signed(value, 3) + (" †" if value < DOUBTFUL_BELOW else "")


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _pc(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def _range(part: Mapping[str, float]) -> str:
    return f"{100 * part['low']:.1f} to {100 * part['high']:.1f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value % 1 else f"{value:.0f}"


def _finite(values: Sequence[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _inline(info: Any) -> str:
    if isinstance(info, Mapping):
        return "; ".join(f"{k} {v}" for k, v in info.items()) or "not described"
    return str(info)


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) if content else ""
