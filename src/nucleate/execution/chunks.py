"""Lists of items spread over the workers of a pool in chunks, whatever kind of pool it is.

A chunk that fails as a whole is run again item by item, so that only the item at fault is lost.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nucleate.errors import NucleateError
from nucleate.execution.meter import current_meter, metered
from nucleate.physics.cells import as_cell
from nucleate.physics.potentials import WorkerCrashError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pymatgen.core import Structure

    from nucleate.execution.pool import Pool
    from nucleate.physics.cells import Cell

MOST_ATOMS = 2000  # of one task of spread()


class PoolLostError(NucleateError):
    """No worker can be had any more. It is no item's failure, and ends what waits for items."""


def pool_stopped() -> WorkerCrashError:
    """What a task raises that a pool was shut down on."""
    return WorkerCrashError("the pool was shut down before this task ended")


def map_chunks(
    pool: Pool,
    function: Any,
    items: Sequence[Any],
    chunk_size: int | Sequence[int],
    timeout: float | None,
    more: float = 1.0,
) -> list[Future[list[Any]]]:
    """Start a function on chunks of items.

    Args:
        pool: where it runs.
        function: what the pool can run; takes a list of items and returns as many results.
        items: B items.
        chunk_size: items in a chunk, or the size of each chunk in turn.
        timeout: seconds for a single item.
        more: seconds that a chunk has for each further item.

    Returns:
        One future for each chunk, in order, each with a result or an Exception for each of its
        items. It raises PoolLostError if the pool can run nothing any more.
    """
    chunks = _cut(items, chunk_size)
    return [_Chunk(pool, function, chunk, timeout, more).future for chunk in chunks]


def spread(
    pool: Pool,
    function: Any,
    structures: Sequence[Structure | Cell],
    timeout: float | None,
    more: float = 1.0,
) -> Future[list[Any]]:
    """Start a function on the distinct ones of some structures, the largest first.

    Args:
        pool: where it runs.
        function: what the pool can run; takes a list of :class:`Cell` and returns as many results.
        structures: B structures.
        timeout: seconds for a single one.
        more: seconds that each further one adds in a task of several.

    Returns:
        A future of B results, order kept; an Exception in the place of what failed. It raises
        PoolLostError if the pool can run nothing any more.
    """
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
    sizes = _chunk_sizes([len(cells[k].numbers) for k in order], pool)
    chunks = map_chunks(pool, function, [cells[k] for k in order], sizes, timeout, more)

    def collect(parts: list[list[Any]]) -> list[Any]:
        for k, result in zip(order, (r for part in parts for r in part), strict=True):
            for i in places[k]:
                results[i] = result
        return results

    return _gather(chunks, collect)


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
        self, pool: Pool, function: Any, items: list[Any], timeout: float | None, more: float
    ) -> None:
        self.future: Future[list[Any]] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()
        self._pool, self._function, self._items, self._timeout = pool, function, items, timeout
        self._results: list[Any] = [None] * len(items)
        self._left = len(items)
        self._meter = current_meter()  # retries are started in other threads
        self._lock = threading.Lock()
        if not items:
            self.future.set_result([])
            return
        whole = None if timeout is None else timeout + more * (len(items) - 1)
        pool.schedule(function, (items,), whole).add_done_callback(self._whole_done)

    def _whole_done(self, done: Future[Any]) -> None:
        results = _results(self._function, done, len(self._items))
        if isinstance(results, PoolLostError):
            self.future.set_exception(results)
        elif not isinstance(results, Exception):
            self.future.set_result(results)
        elif len(self._items) == 1:
            self.future.set_result([results])
        else:
            for i, item in enumerate(self._items):
                try:
                    with metered(self._meter):
                        single = self._pool.schedule(self._function, ([item],), self._timeout)
                except RuntimeError as closed:  # the pool was shut down meanwhile
                    self._set(i, WorkerCrashError("the pool was shut down", str(closed)))
                    continue
                single.add_done_callback(partial(self._one_done, i))

    def _one_done(self, i: int, done: Future[Any]) -> None:
        results = _results(self._function, done, 1)
        self._set(i, results if isinstance(results, Exception) else results[0])

    def _set(self, i: int, result: Any) -> None:
        with self._lock:
            self._results[i] = result
            self._left -= 1
            finished = not self._left
        if not finished:
            return
        lost = next((r for r in self._results if isinstance(r, PoolLostError)), None)
        if lost is None:
            self.future.set_result(self._results)
        else:
            self.future.set_exception(lost)


def _results(function: Any, done: Future[Any], n: int) -> list[Any] | Exception:
    """The n results of a task, or why there are none."""
    error = done.exception()
    if error is not None:
        return error if isinstance(error, Exception) else RuntimeError(repr(error))
    name = getattr(function, "__name__", repr(function))
    try:
        results = list(done.result())
    except TypeError:
        kind = type(done.result()).__name__
        return TypeError(f"{name} returned {kind} instead of a list")
    if len(results) != n:
        return ValueError(
            f"{name} returned another number of results, {len(results)} for {n} items"
        )
    return results


def _chunk_sizes(n_atoms: list[int], pool: Pool) -> list[int]:
    """Sizes of consecutive chunks with about equal numbers of atoms, three or more a worker."""
    target = min(max(sum(n_atoms) / (3 * pool.n_workers), pool.least_atoms), MOST_ATOMS)
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
