"""Workers of another interpreter: what travels, what may go wrong there, and what it costs."""

from __future__ import annotations

import gc
import hashlib
import math
import re
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, MissingDependencyError, RecipeError
from nucleate.execution.isolated import IsolatedPool, IsolatedPotential
from nucleate.execution.remote import Remote, RemoteError, find_interpreter
from nucleate.physics.cells import Cell
from nucleate.physics.potentials import AsePotential, WorkerCrashError
from nucleate.physics.relax import RelaxStatus, relax
from nucleate.protocols import Potential, PotentialResult

FAULTY = """
import os, signal, subprocess, sys, time

def act(items):
    out = []
    for item in items:
        if item == "raise": raise ValueError("no such crystal")
        if item == "exit": sys.exit("enough")
        if item == "hang": time.sleep(600)
        if item == "die": print("last words", flush=True); os._exit(3)
        if item == "kill": os.kill(os.getpid(), signal.SIGKILL)
        if item == "die with a child":
            subprocess.Popen(["sleep", "600"], close_fds=False)
            if os.fork() == 0: time.sleep(600)
            os._exit(4)
        if item == "chatter":
            print('{"id": 1, "value": 5}')
            os.write(1, b"\\xff\\x00\\n" * 50_000)
            subprocess.run(["echo", "garbage"])
            sys.stdin.read()
        if item == "none": return None
        if item == "few": return out
        if item == "object": return [object() for _ in items]
        out.append(float("nan") if item == "nan" else float("inf") if item == "inf" else item)
    return out
"""
HARMLESS = ["a", 1.5, "é\n\x00", "nan", "inf", "b"]
FAULTS = {
    "raise": (RemoteError, "ValueError: no such crystal"),
    "exit": (RemoteError, "SystemExit: enough"),
    "hang": (TimeoutError, "longer than 0.7 s"),
    "die": (WorkerCrashError, "exit code 3.*\n.*last words"),
    "kill": (WorkerCrashError, "SIGKILL"),
    "die with a child": (WorkerCrashError, "exit code 4"),
    "none": (InputError, "returned NoneType instead of a list"),
    "few": (ValueError, "act returned another number"),
    "object": (RemoteError, "object can't be sent"),
}


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def pool(bare: str) -> Iterator[IsolatedPool]:
    with IsolatedPool(bare, timeout=20) as pool:
        yield pool


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    return f"{file}:act"


def written(folder: Path, text: str, name: str = "f.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def same(value: object, other: object) -> bool:
    return repr(value) == repr(other)  # NaN equals NaN


# what travels ---------------------------------------------------------------------------------


def test_it_is_an_executor(pool: IsolatedPool) -> None:
    assert pool.submit("math:hypot", 3, 4).result() == 5.0
    assert pool.submit(math.hypot, 3, 4).result() == 5.0
    assert pool.submit("builtins:dict", a=1).result() == {"a": 1}
    assert list(pool.map(math.sqrt, [4, 9, 16])) == [2.0, 3.0, 4.0]
    with pytest.raises(InputError, match="file and name it"):
        pool.submit(lambda x: x, 1)
    with pytest.raises(TypeError, match="object can't be sent"):
        pool.submit("math:sqrt", object()).result()
    assert pool.versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_other_interpreter_has_neither_nucleate_nor_its_packages(pool: IsolatedPool) -> None:
    for module in ("nucleate", "pymatgen", "numpy", "errors", "worker"):
        with pytest.raises(MissingDependencyError, match=f"No module named '{module}'"):
            pool.load(f"{module}:anything")
    with pytest.raises(MissingDependencyError, match="-m pip install"):
        pool.load(Remote("math:sqrt", structures="pymatgen"))


def test_what_is_sent_arrives(pool: IsolatedPool, tmp_path: Path) -> None:
    echo = f"{written(tmp_path, 'def echo(x): return x')}:echo"
    values = [
        1,
        -0.1,
        1e300,
        float("inf"),
        float("nan"),
        None,
        True,
        "ü\n\u2028\x00",
        "x" * 200_000,
    ]
    assert same(pool.submit(echo, values).result(), values)
    assert pool.submit(echo, {"a": (1, 2)}).result() == {"a": [1, 2]}
    array = np.random.default_rng(0).normal(size=(3, 4))
    assert np.array_equal(pool.submit(echo, array).result(), array)
    assert pool.submit(echo, [np.float32(0.5), np.int64(3)]).result() == [0.5, 3]


def test_structures_travel_as_their_arrays(pool: IsolatedPool, tmp_path: Path) -> None:
    echo = f"{written(tmp_path, 'def echo(x): return x')}:echo"
    crystal = copper().perturb(0.1)
    [arrived] = pool.submit(echo, [crystal]).result()
    assert set(arrived) == {"lattice", "numbers", "frac_coords"}
    assert np.array_equal(arrived["lattice"], crystal.lattice.matrix)
    assert arrived["numbers"] == [29]
    assert np.array_equal(arrived["frac_coords"], crystal.frac_coords)
    mixed = Structure(Lattice.cubic(3), [{"Cu": 0.5}], [[0, 0, 0]])
    with pytest.raises(InputError, match="partially occupied"):
        pool.submit(echo, mixed).result()


@pytest.mark.parametrize(("kind", "expected"), [("ase", "Cu"), ("pymatgen", "Cu1")])
def test_structures_arrive_as_objects_where_asked_for(
    tmp_path: Path, kind: str, expected: str
) -> None:
    text = "def f(x): return [getattr(s, 'formula', None) or s.get_chemical_formula() for s in x]"
    remote = Remote(f"{written(tmp_path, text)}:f", structures=kind)
    with IsolatedPool(sys.executable) as pool:
        assert pool.submit(remote, [copper()]).result() == [expected]
    with pytest.raises(RecipeError, match="'pymatgen'"):
        Remote("math:sqrt", structures="pymatgn")


# what goes wrong there ------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_its_own_item(bare: str, faulty: str, fault: str) -> None:
    error, message = FAULTS[fault]
    with IsolatedPool(bare, timeout=0.7 if fault == "hang" else 30) as pool:
        first, second = pool.map_chunks(faulty, [*HARMLESS, fault, "c"], 6)
        assert same(first.result(60), ["a", 1.5, "é\n\x00", math.nan, math.inf, "b"])
        failed, other = second.result(60)
    assert other == "c"
    assert isinstance(failed, error)
    assert re.search(message, str(failed))


def test_what_a_function_prints_does_not_disturb(pool: IsolatedPool, faulty: str) -> None:
    [chunk] = pool.map_chunks(faulty, ["a", "chatter", "b"], 3)
    assert chunk.result(60) == ["a", "chatter", "b"]


def test_a_child_of_the_function_dies_with_it(bare: str, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "import subprocess, time\n"
        f"def f():\n    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n    time.sleep(600)\n",
    )
    with IsolatedPool(bare, timeout=1.5) as pool, pytest.raises(TimeoutError):
        pool.submit(f"{file}:f").result(60)
    assert ends(int((tmp_path / "pid").read_text()))


def test_loading_is_not_part_of_the_time_out(bare: str, tmp_path: Path) -> None:
    slow = written(tmp_path, "import time\ntime.sleep(1.5)\ndef f(): return 1\n")
    with IsolatedPool(bare, timeout=1.0) as pool:
        assert pool.submit(f"{slow}:f").result(60) == 1


def test_loading_has_a_time_out_of_its_own(pool: IsolatedPool, tmp_path: Path) -> None:
    endless = written(tmp_path, "import time\ntime.sleep(600)\ndef f(): return 1\n")
    pool.submit("math:sqrt", 4).result()
    [process] = pool._desk.workers
    process._start_timeout = 0.3
    with pytest.raises(InputError, match=r"longer than 0\.3 s"):
        pool.load(f"{endless}:f")
    assert pool.submit("math:sqrt", 4).result() == 2.0  # by a new worker


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def g(): pass\n", "has no 'f'"),
        ("f = 3\n", "is no function"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("raise SystemExit(2)\n", "SystemExit"),
    ],
)
def test_what_cannot_be_loaded(pool: IsolatedPool, tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        pool.load(f"{written(tmp_path, text)}:f")


def test_missing_files_and_targets(pool: IsolatedPool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        pool.load(f"{tmp_path / 'absent.py'}:f")
    with pytest.raises(InputError, match="reads neither"):
        pool.load("sqrt")


def test_a_file_that_changes_is_not_called(bare: str, tmp_path: Path) -> None:
    text = "import os\ndef f(x): os._exit(1) if x else None\n"
    file = written(tmp_path, text)
    remote = Remote(f"{file}:f", hashlib.sha256(text.encode()).hexdigest())
    with IsolatedPool(bare) as pool:
        assert pool.submit(remote, 0).result() is None
        file.write_text(text + "\n")
        assert pool.submit(remote, 0).result() is None  # loaded before
        with pytest.raises(WorkerCrashError):
            pool.submit(remote, 1).result()
        with pytest.raises(RemoteError, match="was changed"):
            pool.submit(remote, 0).result()


# workers that break the protocol --------------------------------------------------------------

GREETING = '{"nucleate_worker": 1, "python": "3.11.7", "packages": {}}'
PROGRAMS = {
    "half a line": ("input(); print('{\"id\": 1, \"val', end='')", "the worker process died"),
    "garbage": ("input(); print('what?'); input()", "broke the protocol"),
    "a number": ("input(); print(5); input()", "broke the protocol"),
    "another answer": ('input(); print(\'{"id": 7, "value": 1}\'); input()', "broke the protocol"),
    "nothing": ("input()", "exit code 0"),
}


def program(folder: Path, text: str) -> Path:
    return written(
        folder, f"import sys\nsys.stdout.reconfigure(line_buffering=True)\n{text}\n", "program.py"
    )


@pytest.mark.parametrize("case", PROGRAMS)
def test_broken_protocol(bare: str, tmp_path: Path, case: str) -> None:
    text, part = PROGRAMS[case]
    made = program(tmp_path, f"print('hello')\nprint({GREETING!r})\n{text}")
    with IsolatedPool(bare, program=made) as pool, pytest.raises(WorkerCrashError, match=part):
        pool.submit("math:sqrt", 4).result(60)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"print({GREETING.replace('1', '2', 1)!r}); input()", "speaks version 2, this is 1"),
        ("print('no greeting'); sys.exit(5)", "exit code 5.*\n.*no greeting"),
        ("raise ImportError('no json here')", "exit code 1.*\n.*no json here"),
        ("import time; time.sleep(600)", "did not start a worker within 0.5 s"),
    ],
)
def test_a_worker_that_does_not_start(bare: str, tmp_path: Path, text: str, part: str) -> None:
    made = program(tmp_path, text)
    pool = IsolatedPool(bare, program=made, start_timeout=0.5 if "sleep" in text else 60)
    with pool, pytest.raises(WorkerCrashError, match=part):
        pool.load("math:sqrt")


def test_an_interpreter_that_vanishes_is_a_counted_failure(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    with IsolatedPool(link) as pool:
        link.unlink()
        [chunk] = pool.map_chunks("builtins:list", [1, 2], 2)
        assert [type(answer) for answer in chunk.result(60)] == [WorkerCrashError] * 2


def test_interpreters_are_looked_for(tmp_path: Path, bare: str) -> None:
    with pytest.raises(InputError, match="no such file or command"):
        IsolatedPool(tmp_path / "absent" / "python")
    with pytest.raises(InputError, match=r"Did you mean .*/bin/python"):
        find_interpreter(Path(bare).parents[1])
    with pytest.raises(InputError, match="can be run"):
        find_interpreter(written(tmp_path, "not executable"))
    with pytest.raises(RecipeError, match=r"can't be 3\.11"):
        find_interpreter(3.11)
    assert find_interpreter(bare) == bare  # a link leads out of the virtual environment


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"workers": 1.5}, {"timeout": -1}, {"start_timeout": math.inf}]
)
def test_numbers_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="positive"):
        IsolatedPool(sys.executable, **settings)


# the end --------------------------------------------------------------------------------------


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def ends(pid: int, within: float = 15.0) -> bool:
    deadline = time.monotonic() + within
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(pid)


def test_workers_share_the_calls_and_end_with_the_pool(bare: str) -> None:
    pool = IsolatedPool(bare, 2)
    naps = [pool.submit("time:sleep", 0.5) for _ in range(2)]
    for nap in naps:
        nap.result(60)
    pids = {pool.submit("os:getpid").result() for _ in range(20)}
    pool.shutdown()
    assert 1 <= len(pids) <= 2
    assert not any(running(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit("os:getpid")


def test_shutdown_at_once_fails_what_is_left(bare: str) -> None:
    pool = IsolatedPool(bare)
    pid = pool.submit("os:getpid").result()
    left = [pool.submit("time:sleep", 600) for _ in range(3)]
    pool.shutdown(cancel_futures=True)
    assert all(isinstance(future.exception(20), WorkerCrashError) for future in left)
    assert not running(pid)


def test_a_forgotten_pool_ends_its_worker(bare: str) -> None:
    pool = IsolatedPool(bare)
    pid = pool.submit("os:getpid").result()
    assert pool.map_chunks("builtins:list", [1, 2], 2)[0].result() == [1, 2]
    del pool
    gc.collect()
    assert ends(pid)


def test_a_worker_ends_with_a_killed_parent(bare: str, tmp_path: Path) -> None:
    script = written(
        tmp_path,
        "import sys, time\n"
        "from nucleate.execution.isolated import IsolatedPool\n"
        f"pool = IsolatedPool({bare!r})\n"
        "pid = pool.submit('os:getpid').result()\n"
        "pool.submit('time:sleep', 600)\n"
        "print(pid, flush=True)\n"
        "time.sleep(600)\n",
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ends(pid)


def test_calls_from_many_threads(pool: IsolatedPool) -> None:
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda k=k: found.append(pool.submit("math:sqrt", k * k).result()))
        for k in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(20))


# potentials -----------------------------------------------------------------------------------


def copper(a: float = 3.6) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), ["Cu"], [[0, 0, 0]]
    ).get_primitive_structure()


@pytest.fixture(scope="module")
def emt() -> Iterator[IsolatedPotential]:
    potential = IsolatedPotential("ase.calculators.emt:EMT", sys.executable, {"asap_cutoff": True})
    yield potential
    potential.pool.shutdown()


def test_potential_equals_the_calculator(emt: IsolatedPotential) -> None:
    from ase.calculators.emt import EMT

    here = AsePotential(EMT(asap_cutoff=True))
    assert isinstance(emt, Potential)
    assert emt.weights_hash == here.weights_hash != AsePotential(EMT()).weights_hash
    uranium = Structure(Lattice.cubic(3.0), ["U"], [[0, 0, 0]])
    broken = Cell(np.eye(3), np.array([29]), np.full((1, 3), np.nan))
    pair = copper() * (1, 1, 2)
    crystals = [copper(), uranium, pair.perturb(0.1), broken, copper()]
    results = emt.evaluate(crystals, forces=True, stress=True, magmoms=True)
    expected = here.evaluate(crystals, forces=True, stress=True)
    for k in (0, 2, 4):
        assert results[k].energy == expected[k].energy
        assert np.array_equal(results[k].forces, expected[k].forces)
        assert np.array_equal(results[k].stress, expected[k].stress)
        assert results[k].magmoms is None or not results[k].magmoms.any()
    assert results[4] is results[0]
    assert isinstance(results[1], RemoteError)
    assert isinstance(results[3], InputError)
    assert emt.evaluate([copper()])[0].forces is None
    assert emt.evaluate([]) == []


def test_relaxation_with_an_isolated_potential(emt: IsolatedPotential) -> None:
    from ase.calculators.emt import EMT

    [there] = relax([copper(3.8)], emt)
    [here] = relax([copper(3.8)], AsePotential(EMT(asap_cutoff=True)))
    assert there.status is here.status is RelaxStatus.CONVERGED
    assert there.energy_after == pytest.approx(here.energy_after, abs=1e-9)


def test_a_calculator_that_dies_costs_one_crystal(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "import os\n"
        "from ase.calculators.emt import EMT\n"
        "class Faulty(EMT):\n"
        "    def calculate(self, atoms=None, *rest):\n"
        "        a = round(float(atoms.cell.volume * 4) ** (1 / 3), 3)\n"
        "        if a == 3.5: os._exit(1)\n"
        "        super().calculate(atoms, *rest)\n"
        "        if a == 3.7: self.results['energy'] = float('nan')\n",
    )
    potential = IsolatedPotential(f"{file}:Faulty", sys.executable)
    results = potential.evaluate([copper(a) for a in (3.7, 3.5, 3.8)])
    potential.pool.shutdown()
    kinds = [RemoteError, WorkerCrashError, PotentialResult]
    assert [type(result) for result in results] == kinds
    assert "energy that is not finite" in str(results[0])


def test_what_is_no_calculator(bare: str) -> None:
    with pytest.raises(InputError, match="no ASE calculator"):
        IsolatedPotential("builtins:dict", bare)
    with pytest.raises(RecipeError, match="correction"):
        IsolatedPotential("ase.calculators.emt:EMT", bare, correction="MP2O20")
    with pytest.raises(MissingDependencyError, match="'ase'"):
        IsolatedPotential("ase.calculators.emt:EMT", bare)
