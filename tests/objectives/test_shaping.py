"""Shapings stay in their declared range, keep NaN, and point the way they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from nucleate.objectives.shaping import Shaping

ADAPTER: TypeAdapter[Shaping] = TypeAdapter(Shaping)
RISING = [
    {"type": "clip", "low": -1, "high": 2},
    {"type": "linear", "low": -1, "high": 2},
    {"type": "sigmoid", "centre": 0.1, "width": 0.02},
    {"type": "step", "threshold": 0.1},
    {"type": "log", "low": 0.1, "high": 100},
]
PEAKED = [
    {"type": "target", "target": 1.5, "width": 0.5},
    {"type": "distance", "target": 1.5, "cap": 2, "power": 2},
    {"type": "distance", "target": 1.5, "cap": 2},
    {"type": "target", "target": 1.5, "width": 0.5, "tolerance": 0.2},
    {"type": "distance", "target": 1.5, "cap": 2, "scale": 3},
    {"type": "double_sigmoid", "low": 1, "high": 2, "width": 0.1},
    {"type": "double_sigmoid", "low": 1, "high": 2, "width": 9},
    {"type": "exponential", "target": 1.5, "scale": 0.3},
    {"type": "exponential", "target": 1.5, "scale": 0.3, "power": 2},
    {"type": "window", "low": 1, "high": 2, "margin": 0.5},
    {"type": "window", "low": 1, "high": 2},
]
ALL = RISING + [{**entry, "direction": "minimise"} for entry in RISING] + PEAKED
values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20).map(np.array)


def made(entry: dict) -> Shaping:
    return ADAPTER.validate_python(entry)


@pytest.mark.parametrize("entry", ALL, ids=str)
@given(value=values)
def test_scores_lie_in_the_declared_range(entry: dict, value: np.ndarray) -> None:
    shaping = made(entry)
    low, high = shaping.range
    score = shaping(value)
    assert score.shape == value.shape
    assert ((score >= low) & (score <= high)).all()


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_range_is_reached_nan_is_kept_and_infinity_is_not_passed_on(entry: dict) -> None:
    shaping = made(entry)
    grid = np.array([-1e9, -1, 0.1, 1.5, 2, 100, 1e9])
    score = shaping(grid)
    np.testing.assert_allclose((score.min(), score.max()), shaping.range, atol=1e-9)
    assert np.isnan(shaping(np.array([np.nan]))).all()
    assert np.isfinite(shaping(np.array([np.inf, -np.inf]))).all()


@pytest.mark.parametrize("entry", RISING, ids=str)
@given(value=values)
def test_direction(entry: dict, value: np.ndarray) -> None:
    up, down = made(entry), made({**entry, "direction": "minimise"})
    order = np.argsort(value)
    assert (np.diff(up(value)[order]) >= 0).all()
    assert (np.diff(down(value)[order]) <= 0).all()


@pytest.mark.parametrize("entry", PEAKED, ids=str)
def test_best_at_the_target(entry: dict) -> None:
    shaping = made(entry)
    assert shaping(np.array([1.5]))[0] == shaping.range[1]
    assert shaping(np.array([9.0]))[0] < shaping.range[1]


def test_clipped_energy_above_hull() -> None:
    shaping = made({"type": "clip", "low": 0, "high": 0.6, "direction": "minimise"})
    np.testing.assert_allclose(shaping(np.array([-0.1, 0.0, 0.25, 3.0])), [0, 0, -0.25, -0.6])
    assert str(shaping.range) == "(-0.6, 0.0)"  # zero without a minus


def test_sigmoid_is_one_half_at_its_centre_and_does_not_overflow() -> None:
    shaping = made({"type": "sigmoid", "centre": 0.1, "width": 1e-6, "direction": "minimise"})
    np.testing.assert_allclose(shaping(np.array([0.1, -1e9, 1e9])), [0.5, 1.0, 0.0])


def test_matinvents_lines() -> None:
    target = made({"type": "target", "target": 3.0, "width": 2.0})
    np.testing.assert_allclose(target(np.array([3, 2, 4, 1, 6])), [1, 0.5, 0.5, 0, 0])
    down = made({"type": "linear", "low": 750, "high": 3250, "direction": "minimise"})
    np.testing.assert_allclose(down(np.array([0, 750, 2000, 3250, 9000])), [1, 1, 0.5, 0, 0])
    up = made({"type": "linear", "low": 0, "high": 0.25})
    np.testing.assert_allclose(up(np.array([0.2, 0.5, -1])), [0.8, 1, 0])


@given(value=values, least=st.floats(0, 5), more=st.floats(0.1, 20), wanted=st.floats(-10, 10))
def test_a_line_to_a_target_is_matinvents(
    value: np.ndarray, least: float, more: float, wanted: float
) -> None:
    most = least + more
    shaping = made({"type": "target", "target": wanted, "width": most, "tolerance": least})
    expected = np.clip((-np.abs(value - wanted) + most) / (-least + most), 0, 1)
    np.testing.assert_allclose(shaping(value), expected, atol=1e-12)


@given(value=values, target=st.floats(0.5, 500))
def test_crystalgyms_rewards(value: np.ndarray, target: float) -> None:
    bulk = made({"type": "distance", "target": target, "cap": 5 * target, "scale": target})
    np.testing.assert_allclose(
        bulk(value), np.maximum(-np.abs(value - target) / target, -5), rtol=1e-12
    )
    assert bulk.range == pytest.approx((-5.0, 0.0))
    density = made({"type": "exponential", "target": target, "scale": target, "power": 2})
    np.testing.assert_allclose(density(value), np.exp(-((value - target) ** 2) / target))
    gap = made({"type": "exponential", "target": target, "scale": 1, "power": 2})
    np.testing.assert_allclose(gap(value), np.exp(-((value - target) ** 2)))


def test_a_double_sigmoid_is_the_difference_of_two() -> None:
    x = np.linspace(-3, 6, 50)
    rise, fall = (made({"type": "sigmoid", "centre": c, "width": 0.7})(x) for c in (1, 2))
    score = made({"type": "double_sigmoid", "low": 1, "high": 2, "width": 0.7})(x)
    np.testing.assert_allclose(score, (rise - fall) / np.tanh(1 / (4 * 0.7)), atol=1e-12)
    wide = made({"type": "double_sigmoid", "low": 0, "high": 10, "width": 0.1})
    np.testing.assert_allclose(wide(np.array([0, 5, 10, 20])), [0.5, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "clip", "low": 1, "high": 1},
        {"type": "log", "low": 0, "high": 1},
        {"type": "target", "target": 0, "width": 0},
        {"type": "target", "target": 0, "width": 1, "tolerance": 1},
        {"type": "double_sigmoid", "low": 2, "high": 1, "width": 1},
        {"type": "linear", "low": 0},
        {"type": "unheard of"},
        {"type": "linear", "low": 0, "high": float("nan")},
    ],
    ids=str,
)
def test_senseless_settings_are_refused(entry: dict) -> None:
    with pytest.raises(ValidationError):
        made(entry)
