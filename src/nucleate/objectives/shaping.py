"""Shapings: property value to score, in a known range, so that terms can be combined.

Each is a small frozen model whose ``type`` names it in a recipe, with ``range``, the closed
interval that scores lie in, and ``__call__``, elementwise on arrays. NaN stays NaN.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from nucleate.config import Settings, SettingsError, option

Direction = Literal["maximise", "minimise"]


def _logistic(value: np.ndarray | float) -> np.ndarray:
    """1 / (1 + exp(-value)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(value)))


class _Interval(Settings):
    """Settings with two ends, low below high."""

    low: float = option(description="lower end", unit="unit of the property")
    high: float = option(description="upper end", unit="unit of the property")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise SettingsError(
                f"low must be below high (low {self.low:g}, high {self.high:g})",
                "Exchange them; which way is better says 'direction'.",
            )
        return self


class Clip(_Interval):
    """The value itself, clipped to [low, high]; its negative to minimise. Range as clipped.

    Minimising the energy above hull with ``low`` 0 and ``high`` 0.6 is the reward
    -clip(E_hull, 0, 0.6) eV/atom.
    """

    type: Literal["clip"]
    direction: Direction = option("maximise", description="which way is better")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        if self.direction == "maximise":
            return self.low, self.high
        return 0.0 - self.high, 0.0 - self.low  # zero without a minus

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        clipped: np.ndarray = np.clip(value, self.low, self.high)
        return clipped if self.direction == "maximise" else -clipped


class Linear(_Interval):
    """A line from 0 at one end to 1 at the other, flat outside. Range [0, 1]."""

    type: Literal["linear"]
    direction: Direction = option("maximise", description="which end scores 1")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        rising = np.clip((np.asarray(value) - self.low) / (self.high - self.low), 0.0, 1.0)
        return rising if self.direction == "maximise" else 1.0 - rising


class Target(Settings):
    """1 near the target, falling linearly on both sides to 0 at ``width`` away. Range [0, 1].

    clip((width - |value - target|) / (width - tolerance), 0, 1), which is MatInvent's line to a
    target (its ``minv`` is the tolerance, its ``maxv`` the width).
    """

    type: Literal["target"]
    target: float = option(description="wanted value", unit="unit of the property")
    width: float = option(
        description="distance at which the score is 0", unit="unit of the property", gt=0
    )
    tolerance: float = option(
        0.0, description="distance up to which the score is 1", unit="unit of the property", ge=0
    )

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.tolerance >= self.width:
            raise SettingsError(
                f"tolerance must be below width (tolerance {self.tolerance:g}, width "
                f"{self.width:g})",
                "Lower the tolerance or raise the width.",
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        distance = np.abs(np.asarray(value, dtype=np.float64) - self.target)
        return np.clip((self.width - distance) / (self.width - self.tolerance), 0.0, 1.0)


class Distance(Settings):
    """-min(|value - target|, cap)^power / scale. Range [-cap^power / scale, 0].

    With ``scale`` the target and ``cap`` five times the target it is CrystalGym's reward of a bulk
    modulus, max(-|value - target| / target, -5).
    """

    type: Literal["distance"]
    target: float = option(description="wanted value", unit="unit of the property")
    cap: float = option(description="largest distance counted", unit="unit of the property", gt=0)
    power: Literal[1, 2] = option(1, description="1: absolute, 2: squared")
    scale: float = option(
        1.0, description="what the distance is divided by", unit="unit of the property^power", gt=0
    )

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return -(self.cap**self.power) / self.scale, 0.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        distance = np.minimum(np.abs(np.asarray(value) - self.target), self.cap)
        return -(distance**self.power) / self.scale


class Window(_Interval):
    """1 inside [low, high], falling linearly to 0 at ``margin`` outside. Range [0, 1]."""

    type: Literal["window"]
    margin: float = option(
        0.0,
        description="width of the slopes outside; 0 for none",
        unit="unit of the property",
        ge=0,
    )

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        value = np.asarray(value, dtype=np.float64)
        outside = np.maximum(np.maximum(self.low - value, value - self.high), 0.0)
        if self.margin == 0.0:
            return np.where(np.isnan(value), np.nan, (outside == 0.0).astype(np.float64))
        return np.clip(1.0 - outside / self.margin, 0.0, 1.0)


class Sigmoid(Settings):
    """1 / (1 + exp(-(value - centre) / width)), mirrored to minimise. Range [0, 1]."""

    type: Literal["sigmoid"]
    centre: float = option(description="value that scores one half", unit="unit of the property")
    width: float = option(
        description="distance from centre to a score of 0.73", unit="unit of the property", gt=0
    )
    direction: Direction = option("maximise", description="which way is better")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        scaled = (np.asarray(value, dtype=np.float64) - self.centre) / self.width
        if self.direction == "minimise":
            scaled = -scaled
        return _logistic(scaled)


class DoubleSigmoid(_Interval):
    """A window with soft edges: rises around ``low``, falls around ``high``. Range [0, 1].

    The difference of two logistic functions, scaled to 1 in the middle. At ``low`` and ``high`` it
    is about one half if they are several ``width`` apart.
    """

    type: Literal["double_sigmoid"]
    width: float = option(
        description="how soft the edges are, as for 'sigmoid'", unit="unit of the property", gt=0
    )

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        half = (self.high - self.low) / (2.0 * self.width)
        middle = (self.low + self.high) / 2.0
        away = np.abs(np.asarray(value, dtype=np.float64) - middle) / self.width
        # s(half + x) - s(x - half) is s(half + x) s(half - x) up to a factor, s the logistic
        score = _logistic(half + away) * _logistic(half - away) / _logistic(half) ** 2
        return np.minimum(score, 1.0)


class Exponential(Settings):
    """exp(-|value - target|^power / scale). Range [0, 1].

    With ``power`` 2 it is CrystalGym's reward of a band gap (``scale`` 1) and of a density
    (``scale`` the target).
    """

    type: Literal["exponential"]
    target: float = option(description="wanted value", unit="unit of the property")
    scale: float = option(
        description="distance, to the power, at which the score is 1/e",
        unit="unit of the property^power",
        gt=0,
    )
    power: Literal[1, 2] = option(1, description="1: exponential, 2: Gaussian")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        distance = np.abs(np.asarray(value, dtype=np.float64) - self.target)
        return np.exp(-(distance**self.power) / self.scale)


class Step(Settings):
    """1 strictly beyond the threshold on the better side, 0 elsewhere. Range [0, 1]."""

    type: Literal["step"]
    threshold: float = option(description="where it jumps", unit="unit of the property")
    direction: Direction = option("maximise", description="which side scores 1")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        value = np.asarray(value, dtype=np.float64)
        maximise = self.direction == "maximise"
        beyond = value > self.threshold if maximise else value < self.threshold
        return np.where(np.isnan(value), np.nan, beyond.astype(np.float64))


class Log(_Interval):
    """A line in log(value) from 0 at one end to 1 at the other, flat outside. Range [0, 1].

    For positive quantities over decades; values of 0 and less score like the low end.
    """

    type: Literal["log"]
    direction: Direction = option("maximise", description="which end scores 1")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.low <= 0:
            raise SettingsError(
                f"low must be above 0 for a logarithm (low {self.low:g})", "Raise low."
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        inside = np.clip(np.asarray(value, dtype=np.float64), self.low, self.high)
        rising = np.log(inside / self.low) / math.log(self.high / self.low)
        rising = np.clip(rising, 0.0, 1.0)
        return rising if self.direction == "maximise" else 1.0 - rising


Shaping = Annotated[
    Clip | Linear | Target | Distance | Window | Sigmoid | DoubleSigmoid | Exponential | Step | Log,
    Field(discriminator="type"),
]
