"""Charts as inline SVG text: no plotting library, no script, colours from the page's style sheet.

Every function returns one ``<svg>`` element that scales with the width of its container. Colours
are class names (``base``, ``tuned``, ``third``), so that light, dark and print share one drawing.
All text that is passed in is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

ROLES = ("base", "tuned", "third")


@dataclass(frozen=True)
class Series:
    """A line: ``x`` and ``y`` of equal length; points that aren't finite break the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    role: str = "tuned"


@dataclass(frozen=True)
class Frame:
    """Plot area in user units, data ranges, and the way between them."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Horizontal position of a data value."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        """Vertical position of a data value."""
        low, high = self.y_range
        return self.top + self.height * (1 - (value - low) / ((high - low) or 1.0))


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """A text element; ``content`` is escaped."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{escape(css, quote=True)}" '
        f'text-anchor="{anchor}">{escape(content)}</text>'
    )


def svg(width: float, height: float, title: str, body: Sequence[str], css: str = "") -> str:
    """The outer element, with a title for screen readers."""
    return (
        f'<svg class="chart {escape(css, quote=True)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" aria-label="{escape(title, quote=True)}">{"".join(body)}</svg>'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about ``count`` of them."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def number(value: float) -> str:
    """Short form of a tick value."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    if abs(value) >= 1e3:
        return f"{value / 1e3:g} k"
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """A fraction as a short percentage."""
    return f"{100 * value:.6g} %".replace("-", "\N{MINUS SIGN}")


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean over ``window`` points, shorter at the ends; NaN is left out."""
    half, out = window // 2, []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        out.append(math.fsum(near) / len(near) if near else math.nan)
    return out


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    as_percent: bool = False,
    floor_at_zero: bool = False,
    reference: tuple[float, str] | None = None,
) -> str:
    """Lines over a shared x axis; the raw values thin, a running mean of them bold.

    Args:
        series: the lines.
        title: above the chart.
        x_label: with unit.
        y_label: with unit.
        as_percent: y values are fractions, shown in per cent.
        floor_at_zero: the y axis starts at 0.
        reference: a level to mark with its label.
    """
    width, height = 360.0, 232.0
    xs = [x for s in series for x in s.x if math.isfinite(x)]
    ys = [y for s in series for y in s.y if math.isfinite(y)]
    if not xs or not ys:
        return _empty(width, height, title)
    if reference:
        ys.append(reference[0])
    low, high = min(ys), max(ys)
    low = min(low, 0.0) if floor_at_zero else low
    pad = 0.06 * (high - low) or 0.1 * (abs(high) or 1.0)
    y_range = (low if floor_at_zero and low == 0 else low - pad, high + pad)
    frame = Frame(52, 44, width - 66, height - 86, (min(min(xs), 0.0), max(xs)), y_range)
    body = [
        text(0, 14, title, "title"),
        *_axes(frame, percent if as_percent else number),
    ]
    body.append(text(frame.left + frame.width / 2, height - 6, x_label, "label", "middle"))
    body.append(text(0, 31, y_label, "label"))
    if reference:
        y = frame.y(reference[0])
        end = frame.left + frame.width
        body.append(f'<line class="mark" x1="{frame.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(text(end, y - 4, reference[1], "note", "end"))
    for s in series:
        window = max(1, len(s.y) // 16)
        if window > 1:
            body.append(_path(frame, s.x, s.y, f"line raw {s.role}"))
        body.append(_path(frame, s.x, smoothed(s.y, window), f"line {s.role}"))
    if len(series) > 1:
        body.append(_legend(width, 31, [(s.name, s.role) for s in series]))
    return svg(width, height, f"{title}: {y_label} against {x_label}", body)


def histogram(
    groups: Sequence[tuple[str, str, Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    low: float,
    high: float,
    bins: int,
    threshold: tuple[float, str] | None = None,
) -> str:
    """Overlaid histograms on shared bins; the first and last bin also hold what lies outside.

    Args:
        groups: name, role and values of each.
        title: above the chart.
        x_label: with unit.
        y_label: what is counted.
        low: lower edge of the first bin, in the unit of the values.
        high: upper edge of the last bin.
        bins: number of bins.
        threshold: a value to mark with its label.
    """
    width, height = 560.0, 300.0
    step = (high - low) / bins
    counted = []
    for name, role, values in groups:
        counts = [0] * bins
        for value in values:
            if math.isfinite(value):
                counts[min(max(math.floor((value - low) / step + 1e-9), 0), bins - 1)] += 1
        counted.append((name, role, counts))
    top = max((max(counts) for _, _, counts in counted), default=0)
    if not top:
        return _empty(width, height, title)
    frame = Frame(48, 46, width - 62, height - 90, (low, high), (0, top * 1.08))
    body = [text(0, 14, title, "title"), *_axes(frame, number, x_count=8)]
    body.append(text(frame.left + frame.width / 2, height - 6, x_label, "label", "middle"))
    body.append(text(0, 33, y_label, "label"))
    for _, role, counts in counted:
        points = [f"{frame.x(low):.1f},{frame.y(0):.1f}"]
        for i, count in enumerate(counts):
            y = frame.y(count)
            points.append(f"{frame.x(low + i * step):.1f},{y:.1f}")
            points.append(f"{frame.x(low + (i + 1) * step):.1f},{y:.1f}")
        points.append(f"{frame.x(high):.1f},{frame.y(0):.1f}")
        body.append(f'<polygon class="area {role}" points="{" ".join(points)}"/>')
    if threshold:
        x = frame.x(threshold[0])
        bottom = frame.top + frame.height
        body.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom:.1f}"/>'
        )
        body.append(text(x + 5, frame.top + 10, threshold[1], "note"))
    body.append(_legend(width, 33, [(name, role) for name, role, _ in counted]))
    return svg(width, height, f"{title}: {y_label} against {x_label}", body)


def scatter_chart(
    groups: Sequence[tuple[str, str, Sequence[tuple[float, float]], Sequence[tuple[float, float]]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Points of several sets, and some points of each that stand out.

    Args:
        groups: name, role, all points (x, y) and those that stand out, of each set.
        title: above the chart.
        x_label: with unit.
        y_label: with unit.
    """
    width, height = 560.0, 380.0
    points = [point for _, _, everything, _ in groups for point in everything]
    points = [point for point in points if all(map(math.isfinite, point))]
    if not points:
        return _empty(width, height, title)
    ends = []
    for values in zip(*points, strict=True):
        low, high = min(values), max(values)
        pad = 0.05 * (high - low) or 0.1 * (abs(high) or 1.0)
        ends.append((low - pad, high + pad))
    frame = Frame(60, 46, width - 76, height - 92, ends[0], ends[1])
    body = [text(0, 14, title, "title"), *_axes(frame, number, x_count=6)]
    body.append(text(frame.left + frame.width / 2, height - 6, x_label, "label", "middle"))
    body.append(text(0, 33, y_label, "label"))
    pale = [(name, f"pale {role}", 2.2, everything) for name, role, everything, _ in groups]
    standing_out = [(name, role, 4.5, chosen) for name, role, _, chosen in groups]
    for name, css, radius, marked in (*pale, *standing_out):
        body += [
            f'<circle class="dot {css}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" '
            f'r="{radius}"><title>{escape(name)}: {x:.4g}, {y:.4g}</title></circle>'
            for x, y in marked
            if math.isfinite(x) and math.isfinite(y)
        ]
    body.append(_legend(width, 33, [(name, role) for name, role, _, _ in groups]))
    return svg(width, height, f"{title}: {y_label} against {x_label}", body)


def interval_chart(
    rows: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]], *, title: str
) -> str:
    """Base and tuned fraction of each quantity with 95 % interval, on one axis in per cent.

    Args:
        rows: label, base and tuned, each with ``value``, ``low`` and ``high`` in [0, 1].
        title: above the chart.
    """
    width, row_height = 560.0, 34.0
    height = 92 + row_height * len(rows)
    frame = Frame(204, 44, width - 226, row_height * len(rows), (0, 1), (0, 1))
    body = [text(0, 14, title, "title")]
    bottom = frame.top + frame.height
    for tick in ticks(0, 1, 5):
        x = frame.x(tick)
        body.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom}"/>'
        )
        body.append(text(x, bottom + 16, percent(tick), "tick", "middle"))
    label = "fraction of all requested samples, 95 % interval"
    body.append(text(frame.left + frame.width / 2, height - 8, label, "label", "middle"))
    for i, (name, *sides) in enumerate(rows):
        y = frame.top + row_height * (i + 0.5)
        body.append(text(frame.left - 12, y + 4, name, "row", "end"))
        for part, role, shift in zip(sides, ROLES, (-5.0, 5.0), strict=False):
            ends = (frame.x(part["low"]), frame.x(part["high"]))
            at = y + shift
            body.append(
                f'<line class="whisker {role}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" '
                f'y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<circle class="dot {role}" cx="{frame.x(part["value"]):.1f}" cy="{at:.1f}" '
                f'r="4"><title>{escape(name)}, {role}: {100 * part["value"]:.1f} %</title></circle>'
            )
    body.append(_legend(width, 33, [("base", "base"), ("tuned", "tuned")]))
    return svg(width, height, title, body)


def funnel_chart(
    stages: Sequence[str],
    sides: Sequence[tuple[str, Mapping[str, int]]],
    title: str = "Funnel: crystals left after each stage",
) -> str:
    """Crystals left after each stage, a pair of bars a stage.

    Args:
        stages: in order.
        sides: name and counts by stage of each set; the first takes the role of the base.
        title: above the chart.
    """
    width, bar = 560.0, 15.0
    row_height = bar * len(sides) + 12
    height = 44 + row_height * len(stages) + 6
    totals = [max(counts.get(stages[0], 0), 1) for _, counts in sides]
    left, room = 96.0, width - 96 - 118
    body = [text(0, 14, title, "title")]
    for i, stage in enumerate(stages):
        top = 46 + row_height * i
        body.append(text(left - 12, top + row_height / 2 - 2, stage, "row", "end"))
        for k, (name, counts) in enumerate(sides):
            count, y = counts.get(stage, 0), top + bar * k
            part = count / totals[k]
            role = ROLES[1] if len(sides) == 1 else ROLES[k]
            body.append(
                f'<rect class="track" x="{left}" y="{y:.1f}" width="{room}" height="{bar - 3}" '
                f'rx="2"/><rect class="bar {role}" x="{left}" y="{y:.1f}" '
                f'width="{room * part:.1f}" height="{bar - 3}" rx="2"><title>{escape(name)}: '
                f"{count} {escape(stage)}</title></rect>"
            )
            body.append(text(left + room + 8, y + 10, f"{count:,} · {100 * part:.1f} %", "tick"))
    roles = [ROLES[1]] if len(sides) == 1 else list(ROLES)
    body.append(_legend(width, 31, [(name, roles[k]) for k, (name, _) in enumerate(sides)]))
    return svg(width, height, "Funnel", body)


def share_bar(parts: Sequence[tuple[str, float]], *, title: str, unit: str) -> str:
    """One bar that is divided among named parts, such as time; amounts in ``unit``."""
    width, height = 560.0, 74.0
    total = math.fsum(amount for _, amount in parts if math.isfinite(amount)) or 1.0
    body, x, label_x = [text(0, 14, title, "title")], 0.0, 0.0
    for i, (name, amount) in enumerate(parts):
        part = amount / total if math.isfinite(amount) else 0.0
        role = ROLES[i % 3] + (" pale" if i >= 3 else "")
        body.append(
            f'<rect class="bar {role}" x="{x:.1f}" y="26" width="{width * part:.1f}" height="18"/>'
        )
        caption = f"{name} {amount:,.0f} {unit} ({100 * part:.0f} %)"
        body.append(f'<rect class="bar {role}" x="{label_x:.1f}" y="55" width="9" height="9"/>')
        body.append(text(label_x + 14, 64, caption, "tick"))
        x += width * part
        label_x += 26 + 5.9 * len(caption)
    return svg(max(width, label_x), height, title, body)


def periodic_table(changes: Mapping[str, tuple[float, str]], *, title: str, legend: str) -> str:
    """Heat map over the elements: gains in the colour of the tuned model, losses in the base's.

    Args:
        changes: for each element symbol the change in points (percentage points) and the text
            that a pointer resting on the cell shows.
        title: above the chart.
        legend: what the colours mean.
    """
    cell, gap = 50.0, 3.0
    width, height = 18 * cell, 9.4 * cell + 58
    largest = max((abs(change) for change, _ in changes.values()), default=0.0) or 1.0
    body = [text(0, 14, title, "title"), text(0, 33, legend, "label")]
    for symbol, (row, column) in _POSITIONS.items():
        x = column * cell
        y = 46 + row * cell + (0.4 * cell if row >= 7 else 0)
        change, hint = changes.get(symbol, (0.0, f"{symbol}: in no sample"))
        part = abs(change) / largest
        role = "tuned" if change > 0 else "base"
        absent = "" if symbol in changes else " absent"
        side = cell - gap
        shade = 0.08 + 0.77 * math.sqrt(part) if part > 0 else 0
        body.append(
            f'<g class="element{absent}"><title>{escape(hint)}</title>'
            f'<rect class="cell" x="{x:.0f}" y="{y:.0f}" width="{side:.0f}" height="{side:.0f}" '
            f'rx="4"/><rect class="heat {role}" x="{x:.0f}" y="{y:.0f}" width="{side:.0f}" '
            f'height="{side:.0f}" rx="4" fill-opacity="{shade:.3f}"/>'
        )
        body.append(text(x + side / 2, y + 21, symbol, "symbol", "middle"))
        if symbol in changes:
            value = f"{change:+.1f}".replace("-", "\N{MINUS SIGN}")
            body.append(text(x + side / 2, y + 37, value, "value", "middle"))
        body.append("</g>")
    return svg(width, height, title, body, "periodic")


def _positions() -> dict[str, tuple[int, int]]:
    """Row and column (from 0) of each element in the long periodic table with the f block below."""
    rows = {
        0: {0: "H", 17: "He"},
        1: {0: "Li Be", 12: "B C N O F Ne"},
        2: {0: "Na Mg", 12: "Al Si P S Cl Ar"},
        3: {0: "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr"},
        4: {0: "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe"},
        5: {0: "Cs Ba", 3: "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn"},
        6: {0: "Fr Ra"},
        7: {2: "La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu"},
        8: {2: "Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr"},
    }
    return {
        symbol: (row, start + i)
        for row, parts in rows.items()
        for start, symbols in parts.items()
        for i, symbol in enumerate(symbols.split())
    }


_POSITIONS = _positions()


def _axes(frame: Frame, y_format: Callable[[float], str], x_count: int = 4) -> list[str]:
    """Grid lines and tick labels of both axes."""
    parts = []
    right, bottom = frame.left + frame.width, frame.top + frame.height
    for tick in ticks(*frame.y_range, 4):
        y = frame.y(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(text(frame.left - 6, y + 4, y_format(tick), "tick", "end"))
    parts.append(
        f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
    )
    for tick in ticks(*frame.x_range, x_count):
        x = frame.x(tick)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" '
            f'y2="{bottom + 4:.1f}"/>'
        )
        parts.append(text(x, bottom + 16, number(tick), "tick", "middle"))
    return parts


def _path(frame: Frame, xs: Sequence[float], ys: Sequence[float], css: str) -> str:
    """A line through the finite points; at most about 600 of them are drawn."""
    stride = max(1, len(xs) // 600)
    commands, pen = [], "M"
    for x, y in list(zip(xs, ys, strict=True))[::stride]:
        if math.isfinite(x) and math.isfinite(y):
            commands.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{escape(css, quote=True)}" d="{" ".join(commands)}"/>'


def _legend(right: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """Names with colour swatches, ending at ``right``."""
    parts, x = [], right
    for name, role in reversed(entries):
        x -= 6.4 * len(name)
        parts.append(text(x, y, name, "tick"))
        x -= 14
        parts.append(f'<rect class="bar {role}" x="{x:.1f}" y="{y - 8:.1f}" width="9" height="9"/>')
        x -= 12
    return "".join(parts)


def _empty(width: float, height: float, title: str) -> str:
    body = [
        text(0, 14, title, "title"),
        text(width / 2, height / 2, "no data yet", "label", "middle"),
    ]
    return svg(width, height, f"{title}: no data yet", body)
