"""The seams: what each room of the corridor hands to the next.

    data -> policy.sample -> screen -> objective.score -> algorithm.update -> (policy)

Order is kept everywhere: entry ``i`` of whatever comes out belongs to entry ``i`` of what went
in, and a failure is an entry with a status and a reason, never a dropped row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch
    from pymatgen.core import Structure

    from nucleate.structures.wyckoff import WyckoffBatch


class Status(StrEnum):
    """How the evaluation of one property of one crystal ended."""

    OK = "ok"
    INVALID = "invalid"  # the crystal can't be decoded or fails a validity test
    UNSUPPORTED = "unsupported"  # has no such value, nor will have (an element the hull lacks, ...)
    FAILED = "failed"  # the evaluation went wrong: it raised, or gave no finite number
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # the worker process died
    FILTERED = "filtered"  # refused by a filter of the objective


class CostClass(StrEnum):
    """Order of magnitude of an evaluation's cost; the screen runs the cheapest first."""

    COMPOSITION = "composition"  # microseconds
    MODEL = "model"  # milliseconds: one call of a potential or predictor
    RELAXATION = "relaxation"  # seconds
    DFT = "dft"  # minutes and up


@dataclass(frozen=True)
class Scores:
    """One property of a batch of crystals, order kept.

    Attributes:
        value: (B,) float64, in the property's unit; NaN exactly where ``status`` is not OK.
        status: B statuses.
        reason: B strings, empty where OK.
        extra: further columns measured on the way, each (B,), such as the energy per atom
            behind an energy above hull; NaN where absent.
    """

    value: np.ndarray
    status: list[Status]
    reason: list[str]
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.value) == len(self.status) == len(self.reason):
            raise ValueError(
                f"Scores of unequal length: {len(self.value)} values, {len(self.status)} "
                f"statuses, {len(self.reason)} reasons"
            )

    def __len__(self) -> int:
        return len(self.value)

    @property
    def ok(self) -> np.ndarray:
        """(B,) bool, True where a finite value was obtained."""
        return np.array([status is Status.OK for status in self.status], dtype=bool)


@runtime_checkable
class Property(Protocol):
    """A named physical quantity of a crystal.

    ``key`` identifies name, settings and weights, so that a cached value is reused exactly where
    it is valid.
    """

    name: str
    unit: str
    cost: CostClass

    @property
    def key(self) -> str:
        """Name, settings and weights in one string."""
        ...

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Values of B crystals, order kept; failures are entries with a status."""
        ...


class Measurements(Protocol):
    """What was measured of a batch of crystals, for all properties that are read from it."""

    def get(
        self,
        key: str,
        structures: Sequence[Any],
        measure: Callable[[list[Any]], Sequence[Any]],
    ) -> list[Any]:
        """Results of B crystals, order kept: those known by this key, and those measured now."""
        ...


@runtime_checkable
class MeasuredProperty(Property, Protocol):
    """A property that is read from a measurement which others are read from too, such as energies.

    ``measurement`` is its key: potential, weights and settings, but nothing of the reading.
    Properties of one measurement are evaluated one after another, and what the first measures of
    a batch the others find in ``shared``.
    """

    @property
    def measurement(self) -> str:
        """Key of the measurement."""
        ...

    def evaluate(
        self, structures: Sequence[Structure], shared: Measurements | None = None
    ) -> Scores:
        """As of any property; asks ``shared``, if there is one, for the measurement."""
        ...


class StreamedProperty(Property, Protocol):
    """A property that gives values as they come, so that each is kept as soon as it is there.

    Made for evaluations that take long and end at different times, such as jobs of a cluster. So
    that no worker waits for the slowest crystal of a batch, the next batch is asked for meanwhile,
    in another thread.
    """

    def stream(self, structures: Sequence[Structure]) -> Iterator[tuple[Sequence[int], Scores]]:
        """Rows and their scores, in any order of rows, until each of B crystals had its own."""
        ...


@dataclass(frozen=True)
class PotentialResult:
    """What a potential says of one crystal.

    Attributes:
        energy: eV/atom.
        forces: (N, 3) eV/Å, or None if not asked for.
        stress: (3, 3) eV/Å³, tension positive as in ASE, or None if not asked for.
        magmoms: (N,) μ_B, or None if the potential has none or they were not asked for.
    """

    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    magmoms: np.ndarray | None = None


@runtime_checkable
class Potential(Protocol):
    """An interatomic potential.

    Attributes:
        name: short name, such as "chgnet".
        level_of_theory: what its energies imitate, such as "PBE(+U)".
        correction: energy correction scheme that its energies already include ("MP2020") or
            "none" for raw DFT energies.
        weights_hash: sha256 of the weights.
    """

    name: str
    level_of_theory: str
    correction: str
    weights_hash: str

    def evaluate(
        self,
        structures: Sequence[Structure],
        *,
        forces: bool = False,
        stress: bool = False,
        magmoms: bool = False,
    ) -> list[PotentialResult | Exception]:
        """One result for each structure; an Exception where that structure alone failed."""
        ...


@dataclass(frozen=True)
class Rollout:
    """What sampling gave.

    Attributes:
        batch: the crystals as tokens, B rows.
        log_prob: (B,) float32 tensor, nats, under the policy and condition that sampled them.
        trace: what ``log_prob`` needs again beside the tokens (the condition, raw angles, ...).
    """

    batch: WyckoffBatch
    log_prob: torch.Tensor
    trace: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batch)


@runtime_checkable
class Policy(Protocol):
    """A generative model of crystals.

    Straight after sampling, ``log_prob(rollout)`` equals ``rollout.log_prob`` within 1e-4 nats,
    whatever the condition.
    """

    def sample(self, n: int, condition: Any, generator: torch.Generator) -> Rollout:
        """Draw ``n`` crystals."""
        ...

    def log_prob(self, rollout: Rollout) -> torch.Tensor:
        """(B,) nats under the current weights and the rollout's own condition."""
        ...
