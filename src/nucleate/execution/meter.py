"""How many seconds worker processes spend on whose behalf.

Whoever wants to know opens a meter; pools look for it when a task is handed to them, in the same
thread, and add what the worker measured::

    with metered() as meter:
        prop.evaluate(structures)
    print(meter.seconds)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


class Meter:
    """Seconds of tasks that have ended.

    Attributes:
        seconds: summed over workers; a task that was stopped for its time counts with its limit,
            one of this machine's processes that raised or died does not count.
        tasks: how many there were.
    """

    def __init__(self) -> None:
        self.seconds, self.tasks = 0.0, 0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count a task."""
        with self._lock:
            self.seconds += seconds
            self.tasks += 1


_CURRENT: ContextVar[Meter | None] = ContextVar("nucleate_meter", default=None)


def current_meter() -> Meter | None:
    """The meter that is open in this thread."""
    return _CURRENT.get()


@contextmanager
def metered(meter: Meter | None = None) -> Iterator[Meter]:
    """Open a meter, or go on with one from another thread."""
    chosen = meter or Meter()
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)


@dataclass(frozen=True)
class Timed:
    """What a task returned, and the seconds that it took in its worker."""

    result: Any
    seconds: float


def timed(function: Callable[..., Any], *args: Any) -> Timed:
    """Call a function, in a worker."""
    started = time.perf_counter()
    return Timed(function(*args), time.perf_counter() - started)
