"""What the pools cost for each task, how they scale, and where the loop itself saturates.

    python benchmarks/scaling.py

Evaluations sleep, so that 8 workers scale on 2 cores and nothing is measured but the way to them
and back. Their lengths are drawn from an exponential distribution. Efficiency is the time that the
sleeps alone take on so many workers, each handed out as soon as one is free, divided by the time
that passed. Workers have started before the clock does: each has had a task that it could not end
before all others had theirs.

The comparison at the end is with how the published systems score a batch: MatInvent and
CrystalFormer-RL score the crystals of one batch, wait for all of them, update, and draw the next
batch; here by ``multiprocessing.Pool.map``. Ours draws and submits the next batch before the scores
of the last are awaited, as nucleate's loop does. Both sides do the same work in one run: batches of
the same sleeping evaluations, one task a crystal, of unequal length as evaluations are, on as many
workers, and the same time for drawing and updating.

The simulation puts the real loop (sampling, decoding, screening, objective, store, update) before
1,000 workers that take no core: each evaluation is due some seconds after a worker was free for it.
It says what part of the time such workers would be busy, what the loop spends for each crystal,
and, by the processor time of all that, the rate that no number of workers raises.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nucleate.execution.cluster import ClusterPool
from nucleate.execution.isolated import IsolatedPool
from nucleate.execution.local import ProcessPool
from nucleate.execution.settings import ClusterSettings
from nucleate.protocols import CostClass, Scores, Status

WORKERS = (1, 2, 4, 8)
EMPTY = 400  # tasks of no length


MEET = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
(folder / str(os.getpid())).touch()
while len(list(folder.iterdir())) < {workers}:
    time.sleep(0.05)
"""


def warm(pool: Executor, workers: int) -> None:
    """Every worker has started: none ends its task before all have theirs."""
    with tempfile.TemporaryDirectory() as folder:
        meet = MEET.format(folder=folder, workers=workers)
        for future in [pool.submit(exec, meet, {}) for _ in range(workers)]:
            future.result()


def seconds(pool: Executor, lengths: Sequence[float]) -> float:
    """Wall time of sleeping tasks that are all submitted at once."""
    started = time.perf_counter()
    for future in [pool.submit(time.sleep, length) for length in lengths]:
        future.result()
    return time.perf_counter() - started


def alone(lengths: Sequence[float], workers: int) -> float:
    """Seconds of tasks in this order, each handed out as soon as a worker is free, at no cost."""
    free = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


# the pools ------------------------------------------------------------------------------------


def scaling(name: str, make: Callable[[int], Executor], tasks: int, length: float) -> None:
    """Overhead and efficiency of a pool."""
    print(f"\n{name}, load {os.getloadavg()[0]:.1f}")
    print("workers   ms a task of no length   evaluations   wall time, s   efficiency")
    for workers in WORKERS:
        lengths = np.random.default_rng(0).exponential(length, tasks * workers).tolist()
        with make(workers) as pool:
            warm(pool, workers)
            empty = seconds(pool, [0.0] * EMPTY) / EMPTY
            passed = seconds(pool, lengths)
        print(
            f"{workers:7d}{1000 * empty:25.2f}{len(lengths):14d}{passed:15.2f}"
            f"{100 * alone(lengths, workers) / passed:12.1f} %",
            flush=True,
        )


# as published ---------------------------------------------------------------------------------


def batch_by_batch(batches: Sequence[Sequence[float]], workers: int, thinking: float) -> float:
    """Seconds with a multiprocessing pool and a synchronous map for each batch."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(time.sleep, [0.2] * workers, chunksize=1)
        started = time.perf_counter()
        for batch in batches:
            time.sleep(thinking)
            pool.map(time.sleep, batch, chunksize=1)
        return time.perf_counter() - started


def one_ahead(batches: Sequence[Sequence[float]], workers: int, thinking: float) -> float:
    """Seconds with our pool, where the next batch is on its way before the last is awaited."""
    with ProcessPool(workers) as pool:
        warm(pool, workers)
        started = time.perf_counter()
        waiting: list[list[Future[None]]] = []
        for batch in batches:
            time.sleep(thinking)
            waiting.append([pool.submit(time.sleep, length) for length in batch])
            if len(waiting) == 2:
                for future in waiting.pop(0):
                    future.result()
        for future in waiting.pop():
            future.result()
        return time.perf_counter() - started


# the loop before many workers -----------------------------------------------------------------


class SimulatedWorkers:
    """A property whose evaluations are due when one of many workers would have done them.

    Args:
        workers: how many.
        length: mean seconds of an evaluation; single ones are drawn from an exponential
            distribution.
    """

    name, unit, key, cost = "simulated", "", "simulated/1", CostClass.DFT

    def __init__(self, workers: int, length: float) -> None:
        self._free = [time.monotonic()] * workers
        self._length = length
        self._random = np.random.default_rng(0)
        self._lock = threading.Lock()
        self.busy = 0.0

    def evaluate(self, structures: Sequence[object]) -> Scores:
        """Scores of B crystals, when the last of them is due."""
        rows, parts = zip(*self.stream(structures), strict=True)
        value = np.concatenate([part.value for part in parts])[np.argsort(np.concatenate(rows))]
        return Scores(value, [Status.OK] * len(value), [""] * len(value))

    def stream(self, structures: Sequence[object]) -> Iterator[tuple[Sequence[int], Scores]]:
        """Rows and their scores, as they are due."""
        due: list[float] = []
        with self._lock:
            lengths = self._random.exponential(self._length, len(structures))
            values = self._random.random(len(structures))
            for length in lengths:
                due.append(max(heapq.heappop(self._free), time.monotonic()) + length)
                heapq.heappush(self._free, due[-1])
            self.busy += float(lengths.sum())
        order = np.argsort(due)
        while len(order):
            time.sleep(max(0.0, due[order[0]] - time.monotonic()))
            done = int(np.searchsorted(np.array(due)[order], time.monotonic(), side="right"))
            rows, order = order[:done].tolist(), order[done:]
            yield rows, Scores(values[rows], [Status.OK] * done, [""] * done)


def simulate(workers: int, length: float, batch: int, steps: int, folder: Path) -> None:
    """The real loop before so many workers."""
    # not at the top, so that worker processes start without them
    import torch

    from nucleate.algorithms.loop import Loop
    from nucleate.design import training_formulas
    from nucleate.objectives.objective import Objective, Term
    from nucleate.objectives.shaping import Linear
    from nucleate.policies.checkpoint import load_policy, resolve
    from nucleate.recipe import load_recipe
    from nucleate.samples import condition_from_recipe
    from nucleate.screen.screen import Screen
    from nucleate.store.rundir import RunDirectory

    torch.set_num_threads(1)
    recipe = load_recipe(
        "stability",
        [
            f"budget={{batch_size: {batch}, steps: {steps}}}",
            "algorithm.novelty_bonus=0",
            "algorithm.guard.action=off",
            "output.tensorboard=false",
            f"output.directory={folder}",
        ],
    )
    path = resolve(recipe.model.checkpoint)
    policy, prior = load_policy(path), load_policy(path)
    condition = condition_from_recipe(recipe, policy)
    known = training_formulas(policy, path)
    simulated = SimulatedWorkers(workers, length)
    shaping = Linear(type="linear", low=0, high=1)
    logged: list[dict[str, float]] = []
    name = f"{workers}-{length:g}-{batch}"
    run = RunDirectory.create(folder, name, recipe.model_dump(mode="json"), files={})
    with run, run.store() as store:
        objective = Objective([Term(simulated, shaping)], store=store)
        timed = _Timed(store.record), _Timed(store.record_step)
        store.record, store.record_step = timed  # type: ignore[method-assign]
        screen = Screen(recipe.screen, store)
        loop = Loop(
            recipe, policy, prior, objective, screen, condition, known, run, on_step=logged.append
        )
        started, worked = time.perf_counter(), time.process_time()
        loop.run()
        passed, worked = time.perf_counter() - started, time.process_time() - worked
        objective.close()
    drawn = batch * len(logged)
    parts = {
        "sampling": sum(step["seconds_sampling"] for step in logged),
        "waiting": sum(step["seconds_scoring"] for step in logged) - timed[0].seconds,
        "updating": sum(step["seconds_updating"] for step in logged),
        "store": timed[0].seconds + timed[1].seconds,
    }
    parts["the rest"] = passed - sum(parts.values())
    shown = "  ".join(f"{1000 * parts[part] / drawn:8.2f}" for part in parts if part != "waiting")
    print(
        f"{length:8g}{batch:8d}{100 * simulated.busy / (workers * passed):9.1f} %"
        f"{drawn / passed:13.1f}{drawn / worked:13.1f}  {shown}",
        flush=True,
    )


class _Timed:
    """A method with the seconds that it took."""

    def __init__(self, method: Callable[..., object]) -> None:
        self._method, self.seconds = method, 0.0

    def __call__(self, *args: object, **kwargs: object) -> object:
        started = time.perf_counter()
        try:
            return self._method(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started


def submit_and_collect(crystals: int) -> float:
    """Seconds for each task in the way to 1,000 workers and back, without the workers."""

    class Instant:
        n_workers, workers_here, least_atoms = 1000, 0, 1

        def schedule(self, fn: object, args: Sequence[list], timeout: object) -> Future:
            future: Future = Future()
            future.set_result([0.0] * len(args[0]))
            return future

    from nucleate.execution.chunks import spread
    from nucleate.physics.cells import Cell

    cells = [
        Cell(np.eye(3) * (4 + i / crystals), np.array([1]), np.zeros((1, 3)))
        for i in range(crystals)
    ]
    started = time.perf_counter()
    spread(Instant(), list, cells, 60.0).result()
    return (time.perf_counter() - started) / crystals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20, help="for each worker")
    parser.add_argument("--milliseconds", type=float, default=500.0, help="of a task, on average")
    parser.add_argument("--steps", type=int, default=4, help="of each simulation")
    parser.add_argument("--batches", type=int, default=10, help="of the comparison")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    length = arguments.milliseconds / 1000

    scaling("local", ProcessPool, arguments.tasks, length)
    isolated = partial(IsolatedPool, sys.executable)
    scaling("isolated", isolated, arguments.tasks, length)
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("parsl") is None:
            print("\ncluster: left out, Parsl is not installed")
        else:

            def jobs(workers: int) -> ClusterPool:
                settings = ClusterSettings(scheduler="local", workers=workers)
                return ClusterPool(settings, Path(folder) / str(workers))

            scaling("cluster, scheduler local", jobs, arguments.tasks, length)

        print("\nthe loop before 1,000 simulated workers, evaluations of about so many seconds")
        print(f"chunks, queues and futures: {1e6 * submit_and_collect(10_000):.0f} µs a task")
        print(
            " seconds   batch     busy   crystals/s   at most, /s  "
            "ms a crystal: sampling, updating, store, the rest"
        )
        for seconds_each, batch in ((1.0, 256), (10.0, 1024)):
            simulate(1000, seconds_each, batch, arguments.steps, Path(folder))

    random = np.random.default_rng(0)
    workers, size = 8, 32
    batches = random.exponential(length, (arguments.batches, size)).tolist()
    thinking = size * length / workers / 2
    theirs = batch_by_batch(batches, workers, thinking)
    ours = one_ahead(batches, workers, thinking)
    print(
        f"\n{arguments.batches} batches of {size} evaluations of {1000 * length:.0f} ms on "
        f"average, {1000 * thinking:.0f} ms for drawing and updating, {workers} workers"
    )
    print(f"a map for each batch: {theirs:.2f} s; the next batch submitted first: {ours:.2f} s")
    print(f"ratio: {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
