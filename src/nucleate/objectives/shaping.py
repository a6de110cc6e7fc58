"""Shapings: property value to score, in a known range, so that terms can be combined.

Each is a small frozen model whose ``type`` names it in a recipe, with ``range``, the closed
interval that scores lie in, and ``__call__``, elementwise on arrays. NaN stays NaN.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from nucleate.config import Settings, option

Direction = Literal["maximise", "minimise"]


class _Interval(Settings):
    """Settings with two ends, low below high."""

    low: float = option(description="lower end", unit="unit of the property")
    high: float = option(description="upper end", unit="unit of the property")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high (low {self.low:g}, high {self.high:g})")
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
        return (self.low, self.high) if self.direction == "maximise" else (-self.high, -self.low)

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
    """1 at the target, falling on both sides, to 0 at ``width`` away (linear). Range [0, 1]."""

    type: Literal["target"]
    target: float = option(description="wanted value", unit="unit of the property")
    width: float = option(
        description="distance at which the score is 0", unit="unit of the property", gt=0
    )

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        return np.clip(1.0 - np.abs(np.asarray(value) - self.target) / self.width, 0.0, 1.0)


class Distance(Settings):
    """-min(|value - target|, cap)^power: the regression loss of a target. Range [-cap^power, 0]."""

    type: Literal["distance"]
    target: float = option(description="wanted value", unit="unit of the property")
    cap: float = option(description="largest distance counted", unit="unit of the property", gt=0)
    power: Literal[1, 2] = option(1, description="1: absolute, 2: squared")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return -(self.cap**self.power), 0.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        return -(np.minimum(np.abs(np.asarray(value) - self.target), self.cap) ** self.power)


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
        return 0.5 * (1.0 + np.tanh(0.5 * scaled))  # the logistic function without overflow


class Exponential(Settings):
    """exp(-|value - target| / scale). Range [0, 1]."""

    type: Literal["exponential"]
    target: float = option(description="wanted value", unit="unit of the property")
    scale: float = option(
        description="distance at which the score is 1/e", unit="unit of the property", gt=0
    )

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return 0.0, 1.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Score of values of any shape, same shape."""
        return np.exp(-np.abs(np.asarray(value, dtype=np.float64) - self.target) / self.scale)


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
            raise ValueError(f"low must be above 0 for a logarithm (low {self.low:g})")
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
    Clip | Linear | Target | Distance | Window | Sigmoid | Exponential | Step | Log,
    Field(discriminator="type"),
]
