"""Confidence intervals of fractions, of their differences and of their ratios.

Sources: E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927) for one fraction; R. G. Newcombe,
Stat. Med. 17, 873 (1998), method 10, for a difference; D. Katz et al., Biometrics 34, 469 (1978)
for a ratio, with half a count added to every cell where one count is 0 (S. D. Walter,
Biometrics 31, 371 (1975)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
METHODS = {
    "fraction": "Wilson score, 95 %",
    "difference": "Newcombe hybrid score (method 10), 95 %, independent samples",
    "ratio": "log ratio by the delta method (Katz), 95 %, independent samples; "
    "half a count added where a count is 0",
    "seeds": "Student t over the logarithms of the ratios of single seeds, 95 %",
    "mean": "normal approximation, 95 %",
}


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fraction:
    """``count`` out of ``n`` with the 95 % Wilson interval, all in [0, 1]."""

    count: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Fraction:
        """Fraction ``count / n``."""
        low, high = wilson(count, n)
        return cls(int(count), int(n), count / n if n else math.nan, low, high)

    def as_dict(self) -> dict[str, float]:
        """Plain dictionary for JSON."""
        return asdict(self)


def wilson(count: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Ends of the Wilson score interval of ``count`` successes in ``n`` trials.

    Args:
        count: successes, 0..n.
        n: trials; 0 gives (NaN, NaN).
        z: normal quantile, 1.96 for 95 %.
    """
    if not 0 <= count <= n:
        raise ValueError(f"count must lie in 0..n, got count={count}, n={n}")
    if n == 0:
        return math.nan, math.nan
    p = count / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if count == 0 else (centre - half) / scale
    high = 1.0 if count == n else (centre + half) / scale
    return low, high


def difference(before: Fraction, after: Fraction) -> Interval:
    """``after - before`` with Newcombe's interval, built from the two Wilson intervals."""
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Interval(value, low, high)


def ratio(before: Fraction, after: Fraction) -> Interval:
    """``after / before`` with the delta-method interval of its logarithm.

    The value itself is the plain ratio: infinite where ``before`` counted nothing, NaN where
    neither did. Only the interval has half a count added.
    """
    if not before.n or not after.n:
        return Interval(math.nan, math.nan, math.nan)
    never = math.inf if after.count else math.nan
    value = after.value / before.value if before.count else never
    a, b, n_a, n_b = (
        float(after.count),
        float(before.count),
        float(after.n),
        float(before.n),
    )
    if after.count == 0 or before.count == 0:
        a, b, n_a, n_b = a + 0.5, b + 0.5, n_a + 0.5, n_b + 0.5
    centre = math.log(a / n_a) - math.log(b / n_b)
    half = Z_95 * math.sqrt(max(1 / a - 1 / n_a + 1 / b - 1 / n_b, 0.0))
    return Interval(value, math.exp(centre - half), math.exp(centre + half))


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent numbers with the normal 95 % interval; NaN ends for one number."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = Z_95 * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def seed_ratio(ratios: Sequence[float]) -> Interval:
    """Geometric mean of the ratios of single seeds, with Student's interval of the logarithm.

    It holds what the pooled interval leaves out, the spread between training runs; undefined
    (NaN) for fewer than two seeds or for a ratio that isn't positive and finite.
    """
    if len(ratios) < 2 or not all(math.isfinite(r) and r > 0 for r in ratios):
        return Interval(math.nan, math.nan, math.nan)
    from scipy.stats import t as student

    logs = [math.log(r) for r in ratios]
    n = len(logs)
    mean = math.fsum(logs) / n
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / (n - 1))
    half = float(student.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
