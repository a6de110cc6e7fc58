"""Measurements that several properties are read from, made once for a batch of crystals."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nucleate.physics.cells import as_cell
from nucleate.physics.potentials import status_of
from nucleate.physics.relax import lasting
from nucleate.protocols import Potential, Scores, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell

Result = TypeVar("Result")


class Shared:
    """What was measured of a batch of crystals, such as energies or phonons.

    Whoever evaluates several properties of the same crystals hands it to those that are a
    :class:`~nucleate.protocols.MeasuredProperty`, and drops it with the batch. A second thread
    that asks for what the first is measuring waits for it. Failures are results too.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[bytes, ...], Any]] = {}
        self._locks: dict[str, threading.Lock] = {}

    def get(
        self,
        key: str,
        structures: Sequence[Structure | Cell],
        measure: Callable[[list[Structure | Cell]], Sequence[Result | Exception]],
    ) -> list[Result | Exception]:
        """Results of B crystals, order kept.

        Args:
            key: what the result depends on beside the crystal.
            structures: the crystals.
            measure: gives one result for each of the distinct crystals that are not known.
        """
        crystals = [_numbers(structure) for structure in structures]
        with self._locks.setdefault(key, threading.Lock()):
            found = self._found.setdefault(key, {})
            new: dict[tuple[bytes, ...], Structure | Cell] = {}
            for crystal, structure in zip(crystals, structures, strict=True):
                if not isinstance(crystal, Exception) and crystal not in found:
                    new.setdefault(crystal, structure)
            if new:
                found |= zip(new, measure(list(new.values())), strict=True)
        return [c if isinstance(c, Exception) else found[c] for c in crystals]


def _numbers(structure: Structure | Cell) -> tuple[bytes, ...] | Exception:
    """All numbers of a crystal, or why it is none."""
    try:
        return tuple(array.tobytes() for array in as_cell(structure))
    except Exception as error:  # that structure's own failure
        return error


def described(potential: Potential, settings: Any) -> str:
    """A potential and a dataclass of settings in one string, for keys."""
    return f"{potential.name}-{potential.weights_hash[:16]}/{settings_digest(settings)}"


def settings_digest(settings: Any) -> str:
    """What a value depends on of settings of a relaxation, or of what begins with one, for keys."""
    text = repr(sorted(lasting(settings).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def scores_of(
    results: Sequence[Result | Exception],
    judge: Callable[[Result], tuple[float, str]],
    columns: Callable[[Result], dict[str, float]],
) -> Scores:
    """Scores of B results.

    Args:
        results: for each crystal its result, or why there is none.
        judge: the value of a result, or NaN and the reason why such a crystal has none: it is
            unsupported, for it will have none another time.
        columns: what goes into the extra columns.
    """
    value = np.full(len(results), np.nan)
    status, reason = [Status.OK] * len(results), [""] * len(results)
    extra: dict[str, np.ndarray] = {}
    for i, result in enumerate(results):
        if isinstance(result, Exception):
            status[i] = status_of(result)
            reason[i] = (str(result) or type(result).__name__).splitlines()[0]
            continue
        for name, number in columns(result).items():
            extra.setdefault(name, np.full(len(results), np.nan))[i] = number
        value[i], reason[i] = judge(result)
        if reason[i]:
            status[i] = Status.UNSUPPORTED
        elif not np.isfinite(value[i]):
            status[i], reason[i] = Status.FAILED, "no finite number"
        if reason[i]:
            value[i] = np.nan
    return Scores(value, status, reason, extra)
