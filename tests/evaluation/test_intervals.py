"""Intervals against published values, closed forms and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from nucleate.evaluation.intervals import (
    Z_95,
    Fraction,
    difference,
    mean_interval,
    ratio,
    seed_ratio,
    wilson,
)


# Newcombe, Stat. Med. 17, 857 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(count: int, n: int, low: float, high: float) -> None:
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


# Newcombe, Stat. Med. 17, 873 (1998), table II, method 10: 56/70 - 48/80 and 5/56 - 0/29.
@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((5, 56), (0, 29), -0.0381, 0.1926)],
)
def test_difference_equals_published_values(
    after: tuple[int, int], before: tuple[int, int], low: float, high: float
) -> None:
    interval = difference(Fraction.of(*before), Fraction.of(*after))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_the_score_equation(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    low, high = wilson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            score = abs(count / n - end) / math.sqrt(end * (1 - end) / n)
            assert score == pytest.approx(Z_95, rel=1e-6)


@given(st.integers(0, 100), st.integers(0, 100))
def test_swapping_sides_inverts_ratio_and_difference(a: int, b: int) -> None:
    x, y = Fraction.of(a, 100), Fraction.of(b, 100)
    forth, back = ratio(x, y), ratio(y, x)
    assert forth.low * back.high == pytest.approx(1)
    assert forth.high * back.low == pytest.approx(1)
    up, down = difference(x, y), difference(y, x)
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))


def test_ratio_covers_the_truth_in_95_percent_of_draws() -> None:
    rng = np.random.default_rng(0)
    n, truth = 1000, 0.45 / 0.17
    hits = 0
    for before, after in zip(rng.binomial(n, 0.17, 2000), rng.binomial(n, 0.45, 2000), strict=True):
        interval = ratio(Fraction.of(before, n), Fraction.of(after, n))
        hits += interval.low <= truth <= interval.high
    assert wilson(hits, 2000)[0] <= 0.96
    assert wilson(hits, 2000)[1] >= 0.94


def test_zero_counts_give_finite_ends_and_no_samples_give_nan() -> None:
    interval = ratio(Fraction.of(0, 50), Fraction.of(10, 50))
    assert math.isinf(interval.value)
    assert 0 < interval.low < interval.high < math.inf
    assert math.isnan(ratio(Fraction.of(0, 0), Fraction.of(0, 50)).value)
    assert math.isnan(Fraction.of(0, 0).value)


def test_seed_ratio_is_the_t_interval_of_logarithms() -> None:
    interval = seed_ratio([2.0, 2.0, 2.0])
    assert (interval.value, interval.low, interval.high) == pytest.approx((2, 2, 2))
    wide = seed_ratio([1.0, 4.0])
    assert wide.value == pytest.approx(2)
    assert math.log(wide.high / 2) == pytest.approx(12.7062 * math.log(2), rel=1e-4)
    assert math.isnan(seed_ratio([2.0]).value)


def test_mean_interval_of_a_normal_sample() -> None:
    values = norm.ppf((np.arange(400) + 0.5) / 400).tolist()
    interval = mean_interval(values)
    assert interval.value == pytest.approx(0, abs=1e-12)
    assert interval.high == pytest.approx(Z_95 * np.std(values, ddof=1) / 20)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="count=5, n=4"):
        wilson(5, 4)
