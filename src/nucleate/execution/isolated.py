"""A pool of workers in another Python interpreter, for packages that exclude each other.

Each worker is one long-lived process of that interpreter and needs nothing of nucleate there. A
call that overruns its time or kills its worker fails alone: the worker is started anew for the next
one.
"""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nucleate.errors import InputError, MissingDependencyError, NucleateError, RecipeError
from nucleate.execution.chunks import pool_stopped
from nucleate.execution.local import available_cores
from nucleate.execution.meter import Meter, current_meter
from nucleate.execution.pool import Pool, SpreadPotential
from nucleate.execution.remote import (
    PROGRAM,
    Remote,
    RemoteError,
    RemoteWorker,
    find_interpreter,
)
from nucleate.physics.cells import Cell, as_cell
from nucleate.physics.potentials import check_correction
from nucleate.protocols import PotentialResult

if TYPE_CHECKING:
    from concurrent.futures import Future

START_TIMEOUT = 600.0  # seconds to start, import and read weights


class _Task(NamedTuple):
    future: Future[Any]
    remote: Remote
    args: Sequence[Any] | None  # None: load only
    kwargs: Mapping[str, Any]
    timeout: float | None
    meter: Meter | None


class _Desk:
    """What the threads of a pool share; it does not know the pool, which may be forgotten."""

    def __init__(self, start: Callable[[], RemoteWorker]) -> None:
        self.start = start
        self.tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.workers: set[RemoteWorker] = set()
        self.stopped = threading.Event()
        self.versions: dict[str, str] = {}

    def serve(self) -> None:
        """Do tasks with one worker, started when there is one, until told to stop."""
        process: RemoteWorker | None = None
        while (task := self.tasks.get()) is not None:
            process = self._do(task, process)
            del task  # whoever waits for it may hold the pool
        self._end(process)

    def _do(self, task: _Task, process: RemoteWorker | None) -> RemoteWorker | None:
        """Settle a task; the worker that did it."""
        if not task.future.set_running_or_notify_cancel():
            return process
        try:
            if self.stopped.is_set():
                raise pool_stopped()
            if process is None or not process.alive:
                self._end(process)
                process = self._begin()
            task.future.set_result(_done(task, process))
        except Exception as error:  # handed to whoever waits
            task.future.set_exception(pool_stopped() if self.stopped.is_set() else error)
        return process

    def _begin(self) -> RemoteWorker:
        process = self.start()
        self.versions = process.versions
        self.workers.add(process)
        if self.stopped.is_set():
            process.kill()
        return process

    def _end(self, process: RemoteWorker | None) -> None:
        if process is not None:
            process.stop()
            self.workers.discard(process)


def _done(task: _Task, process: RemoteWorker) -> Any:
    if task.args is None:
        return process.load(task.remote)
    started = time.perf_counter()
    try:
        value = process.call(task.remote, task.args, task.kwargs, task.timeout)
    finally:
        if task.meter is not None:
            task.meter.add(time.perf_counter() - started)
    return value if task.remote.decode is None else task.remote.decode(value)


def _close(tasks: queue.SimpleQueue[_Task | None], n_threads: int) -> None:
    for _ in range(n_threads):
        tasks.put(None)


class IsolatedPool(Pool):
    """Workers in another interpreter.

    Args:
        python: path of the interpreter, or a command name.
        workers: processes. Each loads its own copy of whatever it is asked for.
        timeout: seconds that one call may run, None for no limit.
        start_timeout: seconds for starting a worker and, apart, for each load.
        program: the worker's file.

    Raises:
        InputError: there is no such interpreter.
        RecipeError: a number is out of range.

    Example:
        >>> import sys
        >>> with IsolatedPool(sys.executable) as pool:
        ...     pool.submit("math:hypot", 3, 4).result()
        5.0
    """

    def __init__(
        self,
        python: str | Path,
        workers: int = 1,
        *,
        timeout: float | None = None,
        start_timeout: float = START_TIMEOUT,
        program: Path = PROGRAM,
    ) -> None:
        _check_positive("workers", workers, int)
        _check_positive("start_timeout", start_timeout, (int, float))
        if timeout is not None:
            _check_positive("timeout", timeout, (int, float))
        self.python = find_interpreter(python)
        self.n_workers = self.workers_here = workers
        self.timeout = timeout
        threads = max(1, available_cores() // workers)
        made = (self.python, program, threads, start_timeout)
        self._desk = _Desk(lambda: RemoteWorker(*made))
        self._threads = [
            threading.Thread(target=self._desk.serve, daemon=True, name=f"isolated-{i}")
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()
        self._close = weakref.finalize(self, _close, self._desk.tasks, workers)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that matter there, once a worker has started."""
        return dict(self._desk.versions)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function there.

        Args:
            fn: a :class:`Remote`, a target such as ``path.py:function``, or a function that the
                other interpreter can import by its name.
            args: what JSON can hold, arrays (they arrive as lists) and structures.
            kwargs: likewise.

        Returns:
            A future that raises :class:`RemoteError` for what the function raised, TimeoutError
            after the pool's time-out, or WorkerCrashError if the worker died.
        """
        return self._put(Remote.of(fn), args, kwargs, self.timeout)

    def schedule(self, fn: Any, args: Sequence[Any], timeout: float | None) -> Future[Any]:
        """Like :meth:`submit` with this call's own time-out in seconds."""
        return self._put(Remote.of(fn), args, {}, timeout)

    def load(self, fn: Remote | str | Callable[..., Any]) -> Any:
        """Make a function ready in one worker and wait for it, to find what is wrong early.

        Returns:
            For a calculator a mapping with its ``weights_hash``, else None.

        Raises:
            MissingDependencyError: the interpreter lacks a package.
            InputError: the function can't be loaded.
            WorkerCrashError: the worker can't be started.
        """
        remote = Remote.of(fn)
        try:
            return self._put(remote, None, {}, None).result()
        except RemoteError as error:
            what = f"{self.python} can't load {remote.target}."
            if error.kind in ("ModuleNotFoundError", "ImportError"):
                fix = f"Install what is missing there: {self.python} -m pip install ..."
                raise MissingDependencyError(what, f"{error.what}.", fix) from error
            raise InputError(what, f"{error.what} {error.why}".strip()) from error
        except TimeoutError as error:
            raise InputError(f"{self.python}: loading {remote.target} {error}.") from error

    def map_chunks(
        self,
        function: Remote | str | Callable[[list[Any]], list[Any]],
        items: Sequence[Any],
        chunk_size: int | Sequence[int],
        *,
        timeout: float | None = None,
    ) -> list[Future[list[Any]]]:
        """Spread items over the workers in chunks, as :meth:`Pool.map_chunks` does."""
        remote = Remote.of(function)
        if remote.decode is None:
            remote = replace(remote, decode=_as_list)
        return super().map_chunks(remote, items, chunk_size, timeout=timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers: after the queued calls, or at once if ``cancel_futures``.

        Ended at once, calls that have not finished raise WorkerCrashError.
        """
        if cancel_futures:
            self._desk.stopped.set()
        self._close()
        if cancel_futures:
            for process in list(self._desk.workers):
                process.kill()
        if wait or cancel_futures:
            for thread in self._threads:
                thread.join()

    def _put(
        self,
        remote: Remote,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any],
        timeout: float | None,
    ) -> Future[Any]:
        if not self._close.alive:
            raise RuntimeError("the pool was shut down")
        future: Future[Any] = concurrent.futures.Future()
        try:
            plain = None if args is None else _plain(args)
            named = _plain({**remote.kwargs, **kwargs})
        except (NucleateError, TypeError) as error:
            future.set_exception(error)
            return future
        self._desk.tasks.put(_Task(future, remote, plain, named, timeout, current_meter()))
        return future


def _check_positive(name: str, value: Any, kinds: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
        raise RecipeError(f"{name} can't be {value!r}.", fix="Give a positive number.")


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(
            f"the function returned {type(value).__name__} instead of a list",
            fix="Return one number, or None, for each structure of the list that it is given.",
        )
    return value


def _plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, crystals as their arrays.

    Raises:
        InputError: a crystal has no meaning.
        TypeError: the value can't be sent.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Cell) or hasattr(value, "is_ordered"):
        return {name: array.tolist() for name, array in as_cell(value)._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be sent to another interpreter")


# potentials -----------------------------------------------------------------------------------


class IsolatedPotential(SpreadPotential):
    """An ASE calculator of another interpreter as a potential.

    Args:
        calculator: ``module:factory`` or ``path.py:factory``, which makes the calculator there.
        python: the interpreter.
        arguments: keyword arguments of the factory.
        workers: processes.
        timeout: seconds for one crystal.
        name: short name for results and reports; the factory by default.
        level_of_theory: what its energies imitate, such as "PBE".
        correction: the energy correction its energies include, "MP2020" or "none".

    Raises:
        InputError: there is no such interpreter, or the calculator can't be made.
        MissingDependencyError: a package is missing there.
        WorkerCrashError: the worker can't be started.
    """

    def __init__(
        self,
        calculator: str,
        python: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        workers: int = 1,
        timeout: float = 60.0,
        name: str | None = None,
        level_of_theory: str = "unknown",
        correction: str = "none",
    ) -> None:
        check_correction(correction)
        self.name = name or calculator
        self.level_of_theory = level_of_theory
        self.correction = correction
        self.timeout = timeout
        self.pool = pool = IsolatedPool(python, workers, timeout=timeout)
        self._remote = Remote(calculator, calculator=arguments or {}, decode=_results)
        self.weights_hash: str = pool.load(self._remote)["weights_hash"]

    def _work(self, wanted: dict[str, bool]) -> Any:
        """A call of the calculator."""
        return replace(self._remote, kwargs=wanted)


def _results(answers: list[dict[str, Any]]) -> list[PotentialResult | Exception]:
    return [
        RemoteError.from_message(answer["error"])
        if "error" in answer
        else PotentialResult(
            answer["energy"],
            *(
                None if answer[name] is None else np.array(answer[name], dtype=np.float64)
                for name in ("forces", "stress", "magmoms")
            ),
        )
        for answer in answers
    ]
