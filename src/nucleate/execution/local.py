"""All cores of this machine: a pool of processes in which a hang or a crash costs one item.

Workers are spawned, use one thread each, and die with their parent, however it ends. A task that
overruns its time or kills its worker fails alone: its neighbours in a chunk are run again one by
one, the worker is replaced, and the order of results is kept.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pebble

from nucleate.allocator import keep_memory
from nucleate.physics.cells import as_cell, for_potential
from nucleate.physics.potentials import WorkerCrashError, get_potential

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.physics.relax import Relaxation, RelaxSettings
    from nucleate.protocols import PotentialResult

ATOMS_PER_CHUNK = (150, 2000)  # least and most atoms that one task of PooledPotential holds


def _die_with_parent(parent: int) -> None:
    """End this process when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _start_worker(
    parent: int, potential: str | None, initializer: Callable[..., Any] | None, args: tuple
) -> None:
    _die_with_parent(parent)
    keep_memory()
    import torch

    torch.set_num_threads(1)
    if potential is not None:
        _potential(potential)
    if initializer is not None:
        initializer(*args)


@lru_cache(maxsize=8)
def _potential(spec: str) -> Any:
    """The potential of this worker, built once."""
    return get_potential(spec)


def _n_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(pool: pebble.ProcessPool, started: threading.Event, closed: threading.Event) -> None:
    """Start the workers and stay until the pool is closed."""
    pool.schedule(os.getpid)
    started.set()
    closed.wait()


class ProcessPool(concurrent.futures.Executor):
    """A pool of worker processes with a time-out for each task.

    Args:
        n_workers: processes; by default one for each core this process may use.
        timeout: seconds that one task may run, None for no limit.
        potential: name of a potential that each worker builds when it starts.
        initializer: function called in each new worker, importable by name.
        initargs: its arguments.

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
        potential: str | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple = (),
    ) -> None:
        self.n_workers = n_workers or _n_cores()
        self.timeout = timeout
        self._unfinished: set[Future[Any]] = set()
        self._pool = pebble.ProcessPool(
            max_workers=self.n_workers,
            initializer=_start_worker,
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

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` in a worker.

        The future raises what the function raised, TimeoutError after the pool's time-out, or
        :class:`WorkerCrashError` if the worker died.
        """
        return self.schedule(partial(fn, **kwargs) if kwargs else fn, args, self.timeout)

    def schedule(
        self, fn: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Future[Any]:
        """Like :meth:`submit` with this task's own time-out in seconds."""
        inner = self._pool.schedule(fn, args=list(args), timeout=timeout)
        outer: Future[Any] = concurrent.futures.Future()
        self._unfinished.add(outer)

        def finish(done: Future[Any]) -> None:
            self._unfinished.discard(outer)
            if not outer.set_running_or_notify_cancel():
                return
            try:
                outer.set_result(done.result())
            except concurrent.futures.CancelledError:
                outer.set_exception(_stopped())
            except TimeoutError:
                outer.set_exception(TimeoutError(f"took longer than {timeout:g} s"))
            except pebble.ProcessExpired as error:
                outer.set_exception(
                    WorkerCrashError(f"the worker process died (exit code {error.exitcode})")
                )
            except Exception as error:  # the task's own, handed on
                outer.set_exception(error)

        inner.add_done_callback(finish)
        return outer

    def map_chunks(
        self,
        function: Callable[[list[Any]], list[Any]],
        items: Sequence[Any],
        chunk_size: int | Sequence[int],
        *,
        timeout: float | None = None,
    ) -> list[Future[list[Any]]]:
        """Spread items over the workers in chunks.

        Args:
            function: takes a list of items and returns as many results; importable by name, or
                a partial of such a function.
            items: B items.
            chunk_size: items in a chunk, or the size of each chunk in turn.
            timeout: seconds for a single item; a chunk has this and a second more for each item.

        Returns:
            One future for each chunk, in order, each with a result or an Exception for each of
            its items. A chunk that fails as a whole is run again item by item, so that only the
            item at fault is lost.
        """
        limit = timeout if timeout is not None else self.timeout
        return [_Chunk(self, function, chunk, limit).future for chunk in _cut(items, chunk_size)]

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
                future.set_exception(_stopped())
        if cancel_futures:
            self._unfinished.clear()
        if wait or cancel_futures:
            self._closed.set()

    def __exit__(self, exc_type: type | None, *rest: object) -> None:
        self.shutdown(wait=True, cancel_futures=exc_type is not None)


def _stopped() -> WorkerCrashError:
    return WorkerCrashError("the pool was shut down before this task ended")


def _cut(items: Sequence[Any], sizes: int | Sequence[int]) -> Iterable[list[Any]]:
    if isinstance(sizes, int):
        sizes = [sizes] * -(-len(items) // sizes)
    start = 0
    for size in sizes:
        yield list(items[start : start + size])
        start += size


class _Chunk:
    """A chunk on its way: whole at first, item by item if that fails."""

    def __init__(
        self, pool: ProcessPool, function: Callable, items: list[Any], timeout: float | None
    ) -> None:
        self.future: Future[list[Any]] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()
        self._pool, self._function, self._items, self._timeout = pool, function, items, timeout
        self._results: list[Any] = [None] * len(items)
        self._left = len(items)
        self._lock = threading.Lock()
        if not items:
            self.future.set_result([])
            return
        whole = None if timeout is None else timeout + float(len(items) - 1)
        pool.schedule(function, (items,), whole).add_done_callback(self._whole_done)

    def _whole_done(self, done: Future[Any]) -> None:
        error = done.exception()
        if error is None and len(done.result()) == len(self._items):
            self.future.set_result(list(done.result()))
        elif len(self._items) == 1:
            self.future.set_result([error or _wrong_length(self._function)])
        else:
            for i, item in enumerate(self._items):
                try:
                    single = self._pool.schedule(self._function, ([item],), self._timeout)
                except RuntimeError as closed:  # the pool was shut down meanwhile
                    self._set(i, WorkerCrashError("the pool was shut down", str(closed)))
                    continue
                single.add_done_callback(partial(self._one_done, i))

    def _one_done(self, i: int, done: Future[Any]) -> None:
        error = done.exception()
        if error is None and len(done.result()) != 1:
            error = _wrong_length(self._function)
        self._set(i, done.result()[0] if error is None else error)

    def _set(self, i: int, result: Any) -> None:
        with self._lock:
            self._results[i] = result
            self._left -= 1
            finished = not self._left
        if finished:
            self.future.set_result(self._results)


def _wrong_length(function: Callable) -> Exception:
    name = getattr(function, "__name__", repr(function))
    return ValueError(f"{name} returned another number of results than it was given items")


def _evaluate(
    spec: str, forces: bool, stress: bool, magmoms: bool, cells: list[Cell]
) -> list[PotentialResult | Exception]:
    potential = _potential(spec)
    return potential.evaluate(
        for_potential(cells, potential), forces=forces, stress=stress, magmoms=magmoms
    )


def _relax(spec: str, settings: RelaxSettings, cells: list[Cell]) -> list[Relaxation]:
    from nucleate.physics.relax import relax

    return relax(cells, _potential(spec), settings)


class PooledPotential:
    """A potential whose work is spread over a pool of processes.

    Args:
        spec: name of the potential, as for :func:`nucleate.physics.potentials.get_potential`.
        pool: where it runs; others may use it too.
        timeout: seconds for one crystal.

    Example:
        >>> with ProcessPool(potential="chgnet") as pool:
        ...     potential = PooledPotential("chgnet", pool)
        ...     pending = potential.submit(structures)  # returns at once
        ...     ...  # sample the next batch
        ...     results = pending.result()
    """

    def __init__(self, spec: str, pool: ProcessPool, *, timeout: float | None = 60.0) -> None:
        described = get_potential(spec)
        self.accepts_cells = True
        self.name = described.name
        self.level_of_theory = described.level_of_theory
        self.correction = described.correction
        self.weights_hash = described.weights_hash
        self._spec, self.pool, self._timeout = spec, pool, timeout

    def evaluate(
        self,
        structures: Sequence[Structure | Cell],
        *,
        forces: bool = False,
        stress: bool = False,
        magmoms: bool = False,
    ) -> list[PotentialResult | Exception]:
        """One result for each of B structures, order kept; waits for all."""
        return self.submit(structures, forces=forces, stress=stress, magmoms=magmoms).result()

    def submit(
        self,
        structures: Sequence[Structure | Cell],
        *,
        forces: bool = False,
        stress: bool = False,
        magmoms: bool = False,
    ) -> Future[list[PotentialResult | Exception]]:
        """Start evaluating B structures; the future's result is that of :meth:`evaluate`.

        Equal structures are computed once. Structures travel as arrays, the largest first.
        """
        work = partial(_evaluate, self._spec, forces, stress, magmoms)
        return _spread(self.pool, work, structures, self._timeout)


def submit_relaxations(
    structures: Sequence[Structure | Cell],
    spec: str,
    pool: ProcessPool,
    settings: RelaxSettings | None = None,
    *,
    timeout: float | None = 600.0,
) -> Future[list[Relaxation | Exception]]:
    """Start relaxing B crystals on all workers, each worker a batch at a time.

    Args:
        structures: starting points; equal ones are relaxed once.
        spec: name of the potential.
        pool: where it runs.
        settings: of the relaxation.
        timeout: seconds for one crystal alone, after which its worker is killed.

    Returns:
        A future of B relaxations, order kept; an exception where the time-out or a crash left
        nothing to report, or the structure has no meaning.
    """
    from nucleate.physics.relax import RelaxSettings

    return _spread(pool, partial(_relax, spec, settings or RelaxSettings()), structures, timeout)


def _spread(
    pool: ProcessPool,
    work: Callable[[list[Any]], list[Any]],
    structures: Sequence[Structure | Cell],
    timeout: float | None,
) -> Future[list[Any]]:
    """Run ``work`` on chunks of the distinct structures; a future of results in their order."""
    results: list[Any] = [None] * len(structures)
    owners: dict[tuple[bytes, ...], list[int]] = {}
    cells: list[Cell] = []
    for i, structure in enumerate(structures):
        try:
            cell = as_cell(structure)
        except Exception as error:  # that structure's own failure
            results[i] = error
            continue
        owners.setdefault(tuple(array.tobytes() for array in cell), []).append(i)
        if len(owners) > len(cells):
            cells.append(cell)
    order = sorted(range(len(cells)), key=lambda k: -len(cells[k].numbers))
    places = list(owners.values())
    sizes = _chunk_sizes([len(cells[k].numbers) for k in order], pool.n_workers)
    chunks = pool.map_chunks(work, [cells[k] for k in order], sizes, timeout=timeout)

    def collect(parts: list[list[Any]]) -> list[Any]:
        for k, result in zip(order, (r for part in parts for r in part), strict=True):
            for i in places[k]:
                results[i] = result
        return results

    return _gather(chunks, collect)


def _chunk_sizes(n_atoms: list[int], n_workers: int) -> list[int]:
    """Sizes of consecutive chunks with about equal numbers of atoms, three or more a worker."""
    least, most = ATOMS_PER_CHUNK
    target = min(max(sum(n_atoms) / (3 * n_workers), least), most)
    sizes: list[int] = []
    filled = target
    for n in n_atoms:
        if filled >= target:
            sizes.append(0)
            filled = 0
        sizes[-1] += 1
        filled += n
    return sizes


def _gather(futures: list[Future[Any]], collect: Callable[[list[Any]], Any]) -> Future[Any]:
    """One future of many: ``collect`` gets their results in order when all are there."""
    outer: Future[Any] = concurrent.futures.Future()
    outer.set_running_or_notify_cancel()
    left, lock = len(futures), threading.Lock()

    def one_done(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            finished = left == 0
        if finished:
            finish()

    def finish() -> None:
        try:
            outer.set_result(collect([future.result() for future in futures]))
        except Exception as error:  # handed to whoever waits
            outer.set_exception(error)

    if not futures:
        finish()
    for future in futures:
        future.add_done_callback(one_done)
    return outer
