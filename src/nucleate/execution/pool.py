"""What all pools of workers have in common, and the potentials whose work is spread over one."""

from __future__ import annotations

import concurrent.futures
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nucleate.execution.chunks import map_chunks, spread

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.protocols import PotentialResult


class Pool(concurrent.futures.Executor, ABC):
    """Workers that run one task after another, each with a time-out.

    Attributes:
        n_workers: how many.
        workers_here: those of them that take cores of this machine.
        least_atoms: that are worth a task of their own.
        timeout: seconds that one task may run, None for no limit.
    """

    n_workers: int
    workers_here: int
    least_atoms: int = 150  # worth the way to a process of this machine
    timeout: float | None

    @abstractmethod
    def schedule(self, fn: Any, args: Sequence[Any], timeout: float | None) -> Future[Any]:
        """Like :meth:`submit` with this task's own time-out in seconds."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` in a worker.

        The future raises what the function raised, TimeoutError after the pool's time-out,
        WorkerCrashError if the worker died, or :class:`~nucleate.execution.chunks.PoolLostError`
        if no worker can be had any more.
        """
        return self.schedule(partial(fn, **kwargs) if kwargs else fn, args, self.timeout)

    def map_chunks(
        self,
        function: Any,
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
        return map_chunks(self, function, items, chunk_size, limit)

    def __exit__(self, exc_type: type | None, *rest: object) -> None:
        self.shutdown(wait=True, cancel_futures=exc_type is not None)


class SpreadPotential(ABC):
    """A potential whose evaluations are spread over the workers of a pool.

    Attributes:
        pool: where they run; others may use it too.
        timeout: seconds for one crystal.
    """

    accepts_cells = True
    pool: Pool
    timeout: float | None

    @abstractmethod
    def _work(self, wanted: dict[str, bool]) -> Any:
        """What the pool runs on a list of cells; ``wanted`` has forces, stress and magmoms."""

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
        work = self._work({"forces": forces, "stress": stress, "magmoms": magmoms})
        return spread(self.pool, work, structures, self.timeout)
