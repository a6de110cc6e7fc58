"""The process pool: order, time-outs, crashes that cost one item, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from made_up import MadeUpPotential
from nucleate.execution import local
from nucleate.execution.chunks import spread
from nucleate.execution.local import PooledPotential, ProcessPool, submit_relaxations
from nucleate.physics.cells import Cell
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.physics.potentials import WorkerCrashError, get_potential
from nucleate.physics.relax import RelaxSettings, RelaxStatus
from nucleate.protocols import Potential, PotentialResult


def square(items: list[int]) -> list[int | Exception]:
    """Square, except that 13 kills the worker, 17 hangs and 19 is refused."""
    out: list[int | Exception] = []
    for item in items:
        if item == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 17:
            time.sleep(3600)
        out.append(ValueError("no 19") if item == 19 else item * item)
    return out


def raise_on_seven(items: list[int]) -> list[int]:
    if 7 in items:
        raise RuntimeError("no 7")
    return items


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(2, potential="chgnet") as pool:
        yield pool


def flat(futures: list) -> list:
    return [result for future in futures for result in future.result()]


def test_order_is_kept(pool: ProcessPool) -> None:
    assert flat(pool.map_chunks(square, range(10), 3)) == [k * k for k in range(10)]
    assert flat(pool.map_chunks(square, range(5), [1, 4])) == [k * k for k in range(5)]
    assert pool.map_chunks(square, [], 3) == []
    assert pool.submit(max, 3, 4).result() == 4


def test_crash_and_hang_cost_only_their_items(pool: ProcessPool) -> None:
    results = flat(pool.map_chunks(square, [11, 12, 13, 14, 17, 18, 19], 4, timeout=1.0))
    assert results[:2] == [121, 144]
    assert isinstance(results[2], WorkerCrashError)
    assert results[3] == 196
    assert isinstance(results[4], TimeoutError)
    assert results[5] == 324
    assert isinstance(results[6], ValueError)


def test_exception_of_a_chunk_costs_only_its_item(pool: ProcessPool) -> None:
    results = flat(pool.map_chunks(raise_on_seven, [6, 7, 8], 3))
    assert results[0] == 6
    assert isinstance(results[1], RuntimeError)
    assert results[2] == 8


@pytest.mark.parametrize("items", [[5], [5, 6]])
def test_what_is_no_list_is_the_failure_of_its_items(pool: ProcessPool, items: list[int]) -> None:
    (future,) = pool.map_chunks(len, items, 2)
    results = future.result(timeout=60)
    assert len(results) == len(items)
    for result in results:
        assert isinstance(result, TypeError)
        assert "len returned int" in str(result)


def test_too_few_results_are_the_failure_of_their_items(pool: ProcessPool) -> None:
    (future,) = pool.map_chunks(set, [5, 5], 2)
    assert future.result(timeout=60) == [5, 5]  # each alone gives as many as it got
    (future,) = pool.map_chunks(str, [5], 1)  # "[5]", three characters
    assert "another number of results, 3 for 1 items" in str(future.result(timeout=60)[0])


def test_a_potential_with_settings_in_the_pool(pool: ProcessPool) -> None:
    spec = {"name": "ase", "calculator": "ase.calculators.lj:LennardJones", "arguments": {"rc": 6}}
    pooled = PooledPotential(spec, pool)
    (ours,), (theirs,) = (
        pooled.evaluate([rock_salt(5.6)]),
        get_potential(spec).evaluate([rock_salt(5.6)]),
    )
    assert isinstance(ours, PotentialResult)
    assert isinstance(theirs, PotentialResult)
    assert ours.energy == pytest.approx(theirs.energy)


def rock_salt(a: float) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def test_pooled_potential_equals_the_potential(pool: ProcessPool) -> None:
    pooled, own = PooledPotential("chgnet", pool), ChgnetPotential()
    assert isinstance(pooled, Potential)
    assert pooled.weights_hash == own.weights_hash
    broken = Cell(np.eye(3), np.array([1]), np.full((1, 3), np.nan))
    structures = [rock_salt(a) for a in np.linspace(5.4, 6.0, 20)] + [broken, rock_salt(5.4)]
    structures += [rock_salt(5.4).get_primitive_structure()]
    pending = pooled.submit(structures, forces=True)
    expected = own.evaluate(structures, forces=True)
    results = pending.result(timeout=60)
    assert isinstance(results[20], Exception)
    for ours, theirs in zip(results, expected, strict=True):
        if not isinstance(theirs, Exception):
            assert ours.energy == pytest.approx(theirs.energy, abs=1e-6)
            assert np.allclose(ours.forces, theirs.forces, atol=1e-5)
    assert results[21] is results[0]
    assert pooled.evaluate([]) == []


def pair(edge: float, cation: int = 11) -> Cell:
    return Cell(edge * np.eye(3), np.array([cation, 17]), np.array([[0.0] * 3, [0.5] * 3]))


class OnAClock(MadeUpPotential):
    """A potential, and a pool that runs it here; a second passes for each crystal it evaluates."""

    n_workers, workers_here, least_atoms = 1, 1, 150

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[float] = []
        self.limits: list[float] = []

    def monotonic(self) -> float:
        return float(self.asked)

    def schedule(self, fn: Any, args: Any, timeout: float) -> Future[Any]:
        started, result = self.asked, fn(*args)
        self.tasks.append(self.asked - started)
        self.limits.append(timeout)
        done: Future[Any] = Future()
        if self.tasks[-1] > timeout:
            done.set_exception(TimeoutError(f"took longer than {timeout:g} s"))
        else:
            done.set_result(result)
        return done


def test_a_late_relaxation_costs_its_batch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here = OnAClock()
    monkeypatch.setattr("nucleate.physics.relax.time", here)
    monkeypatch.setattr("nucleate.execution.local._potential", lambda _: here)
    near, far = [pair(3.4 + 0.002 * k) for k in range(30)], pair(5.0)
    settings = RelaxSettings(timeout=6.0, fmax=1e-3, volume_range=(0.1, 10.0))
    *done, late = submit_relaxations([*near, far], "made up", here, settings).result()
    assert {result.status for result in done} == {RelaxStatus.CONVERGED}
    assert late.status is RelaxStatus.TIMEOUT
    [seconds] = here.tasks  # in one task, which had more than a time-out and a second for each
    assert seconds > settings.timeout + len(near)
    submit_relaxations([far], "made up", here).result()
    assert here.limits == [2 * 6 * 31 + local.HANG_SECONDS, 2 * 600 + local.HANG_SECONDS]


class Hanging:
    """A potential that needs an hour for a crystal of caesium."""

    accepts_cells = True

    def evaluate(self, cells: list[Cell], **_: bool) -> list[PotentialResult | Exception]:
        time.sleep(3600 if any(55 in cell.numbers for cell in cells) else 0)
        return MadeUpPotential().evaluate(cells, forces=True, stress=True)


def relax_with_a_hang(cells: list[Cell]) -> list[Any]:
    with patch.object(local, "_potential", lambda _: Hanging()):
        return local._relax("hanging", RelaxSettings(), -2.0, cells)


def test_a_hang_in_a_batch_of_relaxations_is_found_by_its_evaluation(pool: ProcessPool) -> None:
    salts = [pair(3.4, cation) for cation in (11, 55, 19)]
    first, hung, last = spread(pool, relax_with_a_hang, salts, 8.0, more=600.0).result(60)
    assert first.status is last.status is RelaxStatus.CONVERGED
    assert isinstance(hung, TimeoutError)


def test_relaxations_through_the_pool(pool: ProcessPool) -> None:
    broken = Cell(np.eye(3), np.array([1]), np.full((1, 3), np.nan))
    first, second, third = submit_relaxations(
        [rock_salt(5.5), broken, rock_salt(5.8)], "chgnet", pool
    ).result(timeout=60)
    assert first.status is RelaxStatus.CONVERGED
    assert isinstance(second, Exception)
    assert third.energy_after == pytest.approx(first.energy_after, abs=1e-3)


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from nucleate.execution.local import ProcessPool\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPool(2)\n"
        "    pids = set()\n"
        "    while len(pids) < 2:\n"
        "        pids |= {pool.submit(os.getpid).result()}\n"
        "    for _ in range(2):\n"
        "        pool.submit(time.sleep, 600)\n"
        "    print(*pids, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in workers if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2
    assert not alive


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_pool_made_in_a_thread_outlives_the_thread() -> None:
    made: list[ProcessPool] = []
    maker = threading.Thread(target=lambda: made.append(ProcessPool(1)))
    maker.start()
    maker.join()
    with made[0] as pool:
        assert pool.submit(os.getpid).result() == pool.submit(os.getpid).result()


def test_shutdown_ends_the_workers_and_refuses_tasks() -> None:
    pool = ProcessPool(1, timeout=30)
    pid = pool.submit(os.getpid).result()
    pending = pool.submit(time.sleep, 600)
    pool.shutdown(cancel_futures=True)
    assert not running(pid)
    assert pending.done()
    with pytest.raises(RuntimeError):
        pool.submit(os.getpid)
