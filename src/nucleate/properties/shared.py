"""Results that several properties of a crystal read, computed once in a process."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from nucleate.physics.cells import Cell, as_cell
from nucleate.physics.potentials import status_of
from nucleate.protocols import Potential, Scores, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

Result = TypeVar("Result")


class Shared(Generic[Result]):
    """The latest results by crystal and settings.

    Properties are evaluated in threads of their own; whoever comes second waits for the first
    and finds the result. What a time-out or a crash prevented is tried again when asked for.

    Args:
        capacity: results kept, the latest used.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._known: OrderedDict[tuple[Any, ...], Result | Exception] = OrderedDict()
        self._capacity = capacity
        self._lock = threading.Lock()

    def get(
        self,
        key: str,
        structures: Sequence[Structure | Cell],
        compute: Callable[[list[Cell]], Sequence[Result | Exception]],
    ) -> list[Result | Exception]:
        """Results of B crystals, order kept.

        Args:
            key: what the result depends on beside the crystal.
            structures: the crystals.
            compute: gives one result for each of the distinct crystals that are not known.
        """
        found: dict[int, Result | Exception] = {}
        places: dict[tuple[Any, ...], list[int]] = {}
        cells: dict[tuple[Any, ...], Cell] = {}
        for i, structure in enumerate(structures):
            try:
                cell = as_cell(structure)
            except Exception as error:  # that structure's own failure
                found[i] = error
                continue
            crystal = (key, *(array.tobytes() for array in cell))
            places.setdefault(crystal, []).append(i)
            cells[crystal] = cell
        with self._lock:
            new = [crystal for crystal in cells if crystal not in self._known]
            computed = compute([cells[crystal] for crystal in new]) if new else []
            results = dict(zip(new, computed, strict=True))
            for crystal, rows in places.items():
                if crystal not in results:
                    self._known.move_to_end(crystal)
                    results[crystal] = self._known[crystal]
                found |= dict.fromkeys(rows, results[crystal])
            for crystal in new:
                if _lasts(results[crystal]):
                    self._known[crystal] = results[crystal]
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return [found[i] for i in range(len(structures))]


def _lasts(result: Any) -> bool:
    failed = isinstance(result, Exception)
    return not failed or status_of(result) not in (Status.TIMEOUT, Status.CRASHED)


def described(potential: Potential, settings: Any) -> str:
    """A potential and a dataclass of settings in one string, for keys."""
    text = repr(sorted(asdict(settings).items()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{potential.name}-{potential.weights_hash[:16]}/{digest}"


def scores_of(
    results: Sequence[Result | Exception],
    judge: Callable[[Result], tuple[float, str]],
    columns: Callable[[Result], dict[str, float]],
) -> Scores:
    """Scores of B results.

    Args:
        results: for each crystal its result, or why there is none.
        judge: the value of a result, or NaN and the reason why there is none.
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
        if not reason[i] and not np.isfinite(value[i]):
            reason[i] = "no finite number"
        if reason[i]:
            value[i], status[i] = np.nan, Status.FAILED
    return Scores(value, status, reason, extra)
