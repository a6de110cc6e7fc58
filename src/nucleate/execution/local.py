"""All cores of this machine: a pool of processes in which a hang or a crash costs one item.

Workers are spawned, use one thread each, and die with their parent, however it ends. A task that
overruns its time or kills its worker fails alone: its neighbours in a chunk are run again one by
one, the worker is replaced, and the order of results is kept.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pebble

from nucleate.allocator import keep_memory
from nucleate.execution.chunks import pool_stopped, spread
from nucleate.execution.meter import current_meter, timed
from nucleate.execution.parent import watch_parent
from nucleate.execution.pool import Pool, SpreadPotential
from nucleate.physics.cells import for_potential
from nucleate.physics.potentials import WorkerCrashError, get_potential

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.physics.relax import Relaxation, RelaxSettings
    from nucleate.protocols import Potential, PotentialResult

Spec: TypeAlias = str | Mapping[str, Any]

HANG_SECONDS = 60.0
"""Beyond time-outs of relaxations, to build a potential for one; what needs more hangs."""


def _die_with_parent(parent: int) -> None:
    """End this process when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    watch_parent(parent)


def start_worker(
    parent: int,
    potential: Spec | None,
    initializer: Callable[..., Any] | None = None,
    args: tuple = (),
) -> None:
    """Make this process a worker: one thread, the potential built, no longer alive than its parent.

    Args:
        parent: process that it works for.
        potential: what it builds, if any.
        initializer: function called last.
        args: its arguments.
    """
    _die_with_parent(parent)
    keep_memory()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what is imported later
    if potential is not None:
        import torch

        torch.set_num_threads(1)
        _potential(potential)
    if initializer is not None:
        initializer(*args)


def _potential(spec: Spec) -> Potential:
    """The potential of this worker, built once."""
    return _built(json.dumps(spec, sort_keys=True))


@lru_cache(maxsize=8)
def _built(spec: str) -> Potential:
    return get_potential(json.loads(spec))


def available_cores() -> int:
    """Processor cores that this process may use, which may be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(pool: pebble.ProcessPool, started: threading.Event, closed: threading.Event) -> None:
    """Start the workers and stay until the pool is closed."""
    pool.schedule(os.getpid)
    started.set()
    closed.wait()


class ProcessPool(Pool):
    """A pool of worker processes with a time-out for each task.

    Args:
        n_workers: processes; by default one for each core this process may use.
        timeout: seconds that one task may run, None for no limit.
        potential: a potential that each worker builds when it starts: its name, or a mapping of
            name and settings.
        initializer: function called in each new worker, importable by name.
        initargs: its arguments.

    Attributes:
        workers_here: processes that take cores of this machine.

    Example:
        >>> with ProcessPool(2) as pool:
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        timeout: float | None = None,
        potential: Spec | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple = (),
    ) -> None:
        self.n_workers = n_workers or available_cores()
        self.workers_here = self.n_workers
        self.timeout = timeout
        self._unfinished: set[Future[Any]] = set()
        self._pool = pebble.ProcessPool(
            max_workers=self.n_workers,
            initializer=start_worker,
            initargs=(os.getpid(), potential, initializer, initargs),
            context=multiprocessing.get_context("spawn"),
        )
        # On Linux a child dies with the thread that made it, so one thread must outlive the pool.
        self._closed = threading.Event()
        started = threading.Event()
        threading.Thread(
            target=_start, args=(self._pool, started, self._closed), daemon=True, name="pool-start"
        ).start()
        started.wait()

    def schedule(
        self, fn: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Future[Any]:
        """Like :meth:`submit` with this task's own time-out in seconds."""
        meter = current_meter()
        inner = self._pool.schedule(timed, args=[fn, *args], timeout=timeout)
        outer: Future[Any] = concurrent.futures.Future()
        self._unfinished.add(outer)

        def finish(done: Future[Any]) -> None:
            self._unfinished.discard(outer)
            if not outer.set_running_or_notify_cancel():
                return
            try:
                answer = done.result()
                if meter is not None:
                    meter.add(answer.seconds)
                outer.set_result(answer.result)
            except concurrent.futures.CancelledError:
                outer.set_exception(pool_stopped())
            except TimeoutError:
                if meter is not None:
                    meter.add(timeout or 0.0)
                outer.set_exception(TimeoutError(f"took longer than {timeout:g} s"))
            except pebble.ProcessExpired as error:
                outer.set_exception(
                    WorkerCrashError(f"the worker process died (exit code {error.exitcode})")
                )
            except Exception as error:  # the task's own, handed on
                outer.set_exception(error)

        inner.add_done_callback(finish)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers: after the queued tasks, or at once if ``cancel_futures``.

        Ended at once, tasks that have not finished raise :class:`WorkerCrashError`.
        """
        if cancel_futures:
            self._pool.stop()
        else:
            self._pool.close()
        if wait or cancel_futures:
            self._pool.join()
        for future in list(self._unfinished) if cancel_futures else ():
            if future.set_running_or_notify_cancel():
                future.set_exception(pool_stopped())
        if cancel_futures:
            self._unfinished.clear()
        if wait or cancel_futures:
            self._closed.set()


def _evaluate(
    spec: Spec, wanted: dict[str, bool], cells: list[Cell]
) -> list[PotentialResult | Exception]:
    potential = _potential(spec)
    return potential.evaluate(for_potential(cells, potential), **wanted)


class _Watched:
    """A potential whose process ends, with a traceback, if an evaluation takes too long."""

    accepts_cells = True

    def __init__(self, potential: Potential, seconds: float) -> None:
        self._potential, self._seconds = potential, seconds

    def evaluate(self, cells: list[Cell], **wanted: bool) -> list[PotentialResult | Exception]:
        faulthandler.dump_traceback_later(self._seconds, exit=True)
        try:
            return self._potential.evaluate(for_potential(cells, self._potential), **wanted)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _relax(spec: Spec, settings: RelaxSettings, hang: float, cells: list[Cell]) -> list[Relaxation]:
    """An evaluation of all hangs if it takes ``hang`` seconds and one more for each crystal."""
    from nucleate.physics.relax import relax

    potential: Any = _potential(spec)
    if len(cells) > 1:  # the pool sees to one alone
        potential = _Watched(potential, hang + len(cells))
    return relax(cells, potential, settings)


class PooledPotential(SpreadPotential):
    """A potential whose work is spread over a pool of processes.

    Args:
        spec: the potential, by name or as a mapping of name and settings, as
            :func:`nucleate.physics.potentials.get_potential` takes it.
        pool: where it runs, processes or a cluster; others may use it too.
        timeout: seconds for one crystal.

    Example:
        >>> with ProcessPool(potential="chgnet") as pool:
        ...     potential = PooledPotential("chgnet", pool)
        ...     pending = potential.submit(structures)  # returns at once
        ...     ...  # sample the next batch
        ...     results = pending.result()
    """

    def __init__(self, spec: Spec, pool: Pool, *, timeout: float | None = 60.0) -> None:
        described = get_potential(spec)
        self.name = described.name
        self.level_of_theory = described.level_of_theory
        self.correction = described.correction
        self.weights_hash = described.weights_hash
        self._spec, self.pool, self.timeout = spec, pool, timeout

    def _work(self, wanted: dict[str, bool]) -> Any:
        """A function of this module, with all but the cells."""
        return partial(_evaluate, self._spec, wanted)

    def relax(
        self, structures: Sequence[Structure | Cell], settings: RelaxSettings
    ) -> list[Relaxation | Exception]:
        """Relax B crystals, each from its first step to its last in one worker; waits for all.

        The worker sees to their time-outs; see :func:`submit_relaxations`.
        """
        return submit_relaxations(structures, self._spec, self.pool, settings).result()


def relax_anywhere(
    structures: Sequence[Structure | Cell], potential: Potential, settings: RelaxSettings
) -> list[Relaxation | Exception]:
    """Relax B crystals, on the workers of a pooled potential, each from first to last step in one.

    Returns:
        B relaxations, order kept; an exception where a worker was lost or a time-out passed.
    """
    from nucleate.physics.relax import relax

    if isinstance(potential, PooledPotential):
        return potential.relax(structures, settings)
    return list(relax(structures, potential, settings))


def submit_relaxations(
    structures: Sequence[Structure | Cell],
    spec: Spec,
    pool: Pool,
    settings: RelaxSettings | None = None,
) -> Future[list[Relaxation | Exception]]:
    """Start relaxing B crystals on all workers, each worker a batch at a time.

    Args:
        structures: starting points; equal ones are relaxed once.
        spec: the potential, by name or as a mapping of name and settings.
        pool: where it runs.
        settings: of the relaxation; their time-out is by default
            :data:`~nucleate.physics.relax.RELAXATION_SECONDS`. In its batch and, if it is late
            there, alone a crystal has this time. A worker is ended that needs more than it,
            :data:`HANG_SECONDS` and a second for each crystal for one evaluation of a batch, or
            for the batch more than all its crystals have.

    Returns:
        A future of B relaxations, order kept; an exception where a hang or a crash left nothing
        to report, or the structure has no meaning.
    """
    from nucleate.physics.relax import RELAXATION_SECONDS, RelaxSettings

    settings = settings or RelaxSettings()
    timeout = RELAXATION_SECONDS if settings.timeout is None else settings.timeout
    work = partial(_relax, spec, replace(settings, timeout=timeout), timeout + HANG_SECONDS)
    return spread(pool, work, structures, 2 * timeout + HANG_SECONDS, 2 * timeout)
