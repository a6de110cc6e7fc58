"""Charts: well-formed SVG that shows what it was given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleate.report import figures

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@given(FINITE, FINITE, st.integers(2, 8))
def test_ticks_are_round_numbers_inside_the_range(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    if high - low < 1e-3:
        return
    found = figures.ticks(low, high, count)
    step = (high - low) * 1e-6
    assert found
    assert all(low - step <= tick <= high + step for tick in found)
    assert len(found) <= 2 * count + 1


def test_a_line_breaks_where_a_value_is_missing() -> None:
    series = figures.Series("kl", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 3.0, 4.0])
    drawn = figures.line_chart([series], title="KL", x_label="steps", y_label="nats")
    paths = [e.get("d", "") for e in _parse(drawn) if e.tag == "path"]
    assert any(path.count("M") == 2 for path in paths)


def test_a_scatter_chart_has_a_dot_for_each_point_and_a_larger_one_where_it_stands_out() -> None:
    groups = [
        ("<base>", "base", [(1.0, 2.0), (2.0, 1.0), (math.nan, 1.0)], [(2.0, 1.0)]),
        ("tuned", "tuned", [(3.0, 3.0)], []),
    ]
    drawn = figures.scatter_chart(groups, title="t", x_label="x", y_label="y")
    dots = [e for e in _parse(drawn).iter() if e.tag == "circle"]
    assert sorted(dot.get("r") for dot in dots) == ["2.2", "2.2", "2.2", "4.5"]
    assert {dot[0].text for dot in dots} == {"<base>: 1, 2", "<base>: 2, 1", "tuned: 3, 3"}
    empty = figures.scatter_chart([], title="t", x_label="x", y_label="y")
    assert "no data yet" in empty


def test_histogram_counts_every_finite_value_once() -> None:
    values = [-5.0, -0.2, 0.0, 0.05, 0.1, 0.99, 7.0, math.nan]
    drawn = figures.histogram(
        [("base", "base", values)],
        title="E",
        x_label="eV/atom",
        y_label="crystals",
        low=-0.2,
        high=1.0,
        bins=12,
        threshold=(0.1, "stable"),
    )
    root = _parse(drawn)
    area = next(e for e in root if e.tag == "polygon")
    points = [tuple(map(float, p.split(","))) for p in area.get("points", "").split()]
    bottom = points[0][1]
    heights = [bottom - y for _, y in points[1:-1:2]]
    unit = max(heights) / 2  # the fullest bin holds two
    assert sum(round(h / unit) for h in heights) == 7


def test_text_is_escaped() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    for drawn in (
        figures.line_chart([], title=hostile, x_label="", y_label=""),
        figures.interval_chart(
            [(hostile, *[{"value": 0.5, "low": 0.4, "high": 0.6}] * 2)], title=hostile
        ),
        figures.funnel_chart([hostile], [(hostile, {hostile: 3})]),
        figures.share_bar([(hostile, 1.0)], title=hostile, unit="s"),
        figures.periodic_table({"Fe": (1.0, hostile)}, title=hostile, legend=hostile),
    ):
        assert "<script" not in drawn
        assert any(hostile in "".join(e.itertext()) for e in _parse(drawn).iter())


def test_periodic_table_has_118_or_fewer_distinct_places() -> None:
    root = _parse(figures.periodic_table({"Pm": (2.5, "")}, title="t", legend="l"))
    places = {(r.get("x"), r.get("y")) for r in root.iter() if r.get("class") == "cell"}
    cells = [r for r in root.iter() if r.get("class") == "cell"]
    assert len(cells) == len(places) == 103  # hydrogen to lawrencium


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [3.0, 3.0]])
def test_degenerate_series_draw(values: list[float]) -> None:
    series = figures.Series("x", list(range(len(values))), values)
    _parse(figures.line_chart([series], title="t", x_label="x", y_label="y"))
