"""The cluster pool: a lost worker costs nothing, a crash or a hang its evaluation; batch scripts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from pymatgen.core import Lattice, Structure

from cluster_tasks import square, square_and_sign
from nucleate import design
from nucleate.errors import InputError, MissingDependencyError, RecipeError
from nucleate.execution import cluster
from nucleate.execution.chunks import PoolLostError, map_chunks, spread
from nucleate.execution.cluster import ClusterPool, batch_script, check_cluster
from nucleate.execution.local import PooledPotential
from nucleate.execution.settings import ClusterSettings
from nucleate.physics.potentials import WorkerCrashError, get_potential, status_of
from nucleate.protocols import PotentialResult, Status
from nucleate.recipe import Recipe, load_recipe

needs_parsl = pytest.mark.skipif(find_spec("parsl") is None, reason="Parsl is not installed")
LENNARD_JONES = {
    "name": "ase",
    "calculator": "ase.calculators.lj:LennardJones",
    "arguments": {"rc": 6},
}
LOCAL = ClusterSettings(
    scheduler="local",
    workers=2,
    setup=f"export PYTHONPATH={os.pathsep.join(filter(None, sys.path))}",
)
PATIENCE = 120.0  # seconds: an idle machine needs a tenth


def wait_for(found: Any) -> Any:
    """What a function finds, as soon as it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return value


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


# evaluations ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterPool]:
    pytest.importorskip("parsl")
    folder = tmp_path_factory.mktemp("cluster")
    with ClusterPool(LOCAL, folder, heartbeat=1) as pool:
        yield pool


def test_it_is_an_executor_and_keeps_order(pool: ClusterPool) -> None:
    assert isinstance(pool, Executor)
    assert pool.n_workers == pool.workers_here == 2
    assert list(pool.map(pow, range(8), [2] * 8, timeout=PATIENCE)) == [k * k for k in range(8)]
    assert pool.submit(int, "ff", base=16).result(timeout=PATIENCE) == 255


def test_failures_are_of_their_own_kind(pool: ClusterPool) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        pool.submit(int, "a").result(timeout=PATIENCE)
    with pytest.raises(RuntimeError, match="generator can't be sent"):
        pool.submit(eval, "(i for i in [1])").result(timeout=PATIENCE)
    with pytest.raises(AttributeError):
        pool.submit(lambda: 1).result(timeout=PATIENCE)


def test_crash_and_hang_cost_only_their_items(pool: ClusterPool) -> None:
    futures = pool.map_chunks(square, [13, 14, 17, 18, 19], [2, 3], timeout=1.0)
    results = [result for future in futures for result in future.result(timeout=PATIENCE)]
    assert status_of(results[0]) is Status.CRASHED
    assert "exit code -9" in str(results[0])
    assert results[1] == 196
    assert status_of(results[2]) is Status.TIMEOUT
    assert results[3] == 324
    assert isinstance(results[4], ValueError)


def test_a_killed_worker_loses_and_repeats_nothing(pool: ClusterPool, tmp_path: Path) -> None:
    futures = [pool.submit(square_and_sign, tmp_path, item) for item in range(12)]
    (first,) = wait_for(lambda: list(tmp_path.glob("3-*.pid")))
    os.kill(int(first.read_text()), signal.SIGKILL)
    wait_for(lambda: len(list(tmp_path.glob("3-*.pid"))) == 2)
    (tmp_path / "go").touch()
    assert [future.result(timeout=PATIENCE) for future in futures] == [k * k for k in range(12)]
    for item in range(12):
        assert len(list(tmp_path.glob(f"{item}-*.pid"))) == (2 if item == 3 else 1)


def test_a_potential_in_the_pool_equals_the_potential(pool: ClusterPool) -> None:
    rock_salt = [
        Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        )
        for a in (5.4, 5.6, 5.4)
    ]
    pooled = PooledPotential(LENNARD_JONES, pool)
    ours, theirs = pooled.evaluate(rock_salt), get_potential(LENNARD_JONES).evaluate(rock_salt)
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, PotentialResult)
        assert isinstance(other, PotentialResult)
        assert one.energy == pytest.approx(other.energy)


def test_on_this_machine_nothing_is_open_to_others(pool: ClusterPool) -> None:
    import psutil

    process = psutil.Process(pool._executor.interchange_proc.pid)
    listening = [c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"]
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@needs_parsl
def test_jobs_that_never_work_end_the_run(tmp_path: Path) -> None:
    broken = LOCAL.model_copy(update={"setup": "echo no such module >&2; exit 3"})
    with ClusterPool(broken, tmp_path, heartbeat=1) as pool:
        with pytest.raises(PoolLostError, match="no such module"):
            pool.submit(pow, 2, 3).result(timeout=PATIENCE)
        with pytest.raises(PoolLostError):
            spread(pool, square, [Structure(Lattice.cubic(3), ["H"], [[0, 0, 0]])], 1.0).result()


@needs_parsl
def test_the_end_of_the_run_is_the_end_of_its_interchange(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from nucleate.execution.cluster import ClusterPool\n"
        "from nucleate.execution.settings import ClusterSettings\n"
        "if __name__ == '__main__':\n"
        "    jobs = ClusterSettings(scheduler='local', workers=1, setup='exit 1')\n"
        "    pool = ClusterPool(jobs, sys.argv[1])\n"
        "    print(pool._executor.interchange_proc.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    arguments = [sys.executable, script, tmp_path / "jobs"]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    interchange = int(parent.stdout.readline())
    assert running(interchange)
    parent.kill()
    parent.wait()
    wait_for(lambda: not running(interchange))


@needs_parsl
def test_a_pool_that_is_shut_down_ends_its_workers_and_refuses_tasks(tmp_path: Path) -> None:
    pool = ClusterPool(LOCAL.model_copy(update={"setup": "sleep 600"}), tmp_path, heartbeat=1)
    pending = pool.submit(pow, 2, 3)
    jobs = [int(job) for job in wait_for(lambda: list(pool._executor.job_ids_to_block))]
    pool.shutdown(cancel_futures=True)
    assert isinstance(pending.exception(timeout=1), WorkerCrashError)
    wait_for(lambda: not any(map(running, jobs)))
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(pow, 2, 3)


def test_a_lost_pool_is_not_a_failure_of_items() -> None:
    class Lost:
        n_workers = workers_here = least_atoms = 1

        def schedule(self, fn: Any, args: Any, timeout: float | None) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("no") if len(args[0]) > 1 else PoolLostError("gone"))
            return future

    for chunk in map_chunks(Lost(), square, [1, 2, 3], [2, 1], None):
        with pytest.raises(PoolLostError, match="gone"):
            chunk.result(timeout=1)


# scripts ----------------------------------------------------------------------------------------


def script(**settings: Any) -> str:
    pytest.importorskip("parsl")
    return batch_script(ClusterSettings(workers=64, **settings), FOLDER)


FOLDER = "/scratch/runs/a/cluster"
KUBERNETES: dict[str, Any] = {
    "scheduler": "kubernetes",
    "partition": "chem",
    "image": "registry.example/nucleate:1",
    "memory": 96,
    "volumes": {"scratch": "/scratch"},
}


class Recorded:
    """Stands in for the client of Kubernetes: pods are kept in a list."""

    ConfigException = type("ConfigException", (Exception,), {})

    def __init__(self, *, known: bool = True) -> None:
        self.pods: list[Any] = []
        self.config_exception = self
        self._known = known

    def load_kube_config(self) -> None:
        if not self._known:
            raise self.ConfigException("Invalid kube-config file.")

    load_incluster_config = load_kube_config

    def CoreV1Api(self) -> Any:  # noqa: N802  its name
        return SimpleNamespace(create_namespaced_pod=self._create)

    def _create(self, **request: Any) -> Any:
        self.pods.append(SimpleNamespace(**request))
        return SimpleNamespace(status="Pending")

    def __getattr__(self, name: str) -> Any:  # V1Pod, V1PodSpec, ...
        return SimpleNamespace


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What Parsl's provider talks to."""
    return stand_in(monkeypatch, Recorded())


def stand_in(monkeypatch: pytest.MonkeyPatch, recorded: Recorded) -> Recorded:
    pytest.importorskip("parsl")
    from parsl.providers.kubernetes import kube

    for name, value in (("client", recorded), ("config", recorded), ("_kubernetes_enabled", True)):
        monkeypatch.setattr(kube, name, value, raising=False)
    return recorded


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler": "slurm", "partition": "cpu", "account": "ab12", "memory": 96, "nodes": 2},
        {"scheduler": "slurm"},
        {"scheduler": "pbs", "partition": "workq", "account": "ab12", "memory": 96, "nodes": 2},
        {"scheduler": "pbs"},
        KUBERNETES,
        {"scheduler": "local"},
    ],
)
def test_parsl_takes_what_it_is_given(settings: dict[str, Any], kubernetes: Recorded) -> None:
    from parsl import Config

    made = ClusterSettings(workers=64, min_jobs=1, max_jobs=8, setup="ulimit -c 0", **settings)
    provider = cluster._provider(made, dry=made.scheduler != "kubernetes")
    executor = cluster._executor(made, provider, 5)
    Config(executors=[executor])
    assert executor.workers_per_node == 64
    assert (provider.min_blocks, provider.max_blocks) == (1, 8)
    assert provider.nodes_per_block == made.nodes
    assert "ulimit -c 0" in provider.worker_init


def test_a_pod_is_a_job(kubernetes: Recorded) -> None:
    made = ClusterSettings(workers=64, walltime="02:00:00", **KUBERNETES)
    cluster._provider(made).submit("run the workers", 1)
    (pod,) = kubernetes.pods
    assert pod.namespace == "chem"
    spec = pod.body.spec
    assert spec.restart_policy == "Never"
    assert spec.active_deadline_seconds == 7200
    (container,) = spec.containers
    assert container.image == "registry.example/nucleate:1"
    assert "run the workers" in container.args[1]
    assert container.resources.requests["memory"] == "96Gi"
    assert float(container.resources.requests["cpu"]) == 64
    (mount,) = container.volume_mounts
    assert (mount.name, mount.mount_path) == ("scratch", "/scratch")


def test_pods_have_to_see_the_folder_and_a_cluster_has_to_be_known(
    monkeypatch: pytest.MonkeyPatch, kubernetes: Recorded
) -> None:
    made = ClusterSettings(workers=64, **KUBERNETES)
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster, "_addresses", lambda wanted: {"192.0.2.1"})
    assert check_cluster(made, FOLDER) == Path(FOLDER)
    assert not kubernetes.pods
    with pytest.raises(InputError, match=r"(?s)don't see /home/me/runs.*/scratch"):
        check_cluster(made, "/home/me/runs")
    stand_in(monkeypatch, Recorded(known=False))
    with pytest.raises(InputError, match="No cluster of Kubernetes is known"):
        check_cluster(made, FOLDER)


def test_the_script_for_slurm() -> None:
    text = script(
        scheduler="slurm",
        partition="cpu",
        account="ab12",
        walltime="04:30:00",
        memory=128,
        setup="module load python",
        options=["--qos=long", "--constraint=amd"],
    )
    for line in (
        "#SBATCH --partition=cpu",
        "#SBATCH --account=ab12",
        "#SBATCH --time=270",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=64",
        "#SBATCH --mem=128g",
        "#SBATCH --qos=long",
        "#SBATCH --constraint=amd",
        "module load python",
        f"export PATH={Path(sys.executable).parent}:$PATH",
    ):
        assert line in text.splitlines()
    assert "--exclusive" not in text
    worker = re.search(r"^process_worker_pool\.py.*$", text, re.MULTILINE)
    assert worker is not None
    assert "--max_workers_per_node=64 " in worker[0]
    assert "--drain_period=15600 " in worker[0]  # ten minutes before the end
    assert "--cert_dir /scratch/runs/a/cluster/000/nucleate/certificates" in worker[0]
    assert "#SBATCH --output=/scratch/runs/a/cluster/000/submit_scripts/" in text
    assert "127.0.0.1" not in text


def test_several_nodes_start_one_set_of_workers_each() -> None:
    text = script(scheduler="slurm", nodes=3)
    assert "#SBATCH --nodes=3" in text
    assert "srun --ntasks 3 -l --cpus-per-task=64" in text
    assert "mpiexec" in script(scheduler="pbs", nodes=3)


def test_the_script_for_pbs() -> None:
    text = script(
        scheduler="pbs", partition="workq", account="ab12", memory=96, options=["-l place=excl"]
    )
    for line in (
        "#PBS -l walltime=01:00:00",
        "#PBS -l select=1:ncpus=64:mem=96gb",
        "#PBS -q workq",
        "#PBS -A ab12",
        "#PBS -l place=excl",
    ):
        assert line in text.splitlines()
    assert "--max_workers_per_node=64 " in text


def test_the_script_for_kubernetes() -> None:
    text = script(setup="ulimit -c 0", **KUBERNETES)
    for line in (
        "# namespace: chem",
        "# image: registry.example/nucleate:1",
        "# max_mem: 96Gi",
        "# max_cpu: 64",
        "# restart_policy: Never",
        "ulimit -c 0",
    ):
        assert line in text.splitlines()
    assert sys.executable not in text
    assert "process_worker_pool.py" in text


def test_the_script_for_this_machine() -> None:
    assert "-a 127.0.0.1 " in script(scheduler="local")


def test_nodes_are_given_the_address_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil")

    class Entry:
        family = socket.AF_INET

        def __init__(self, address: str) -> None:
            self.address = address

    here = {"lo": [Entry("127.0.0.1")], "eth0": [Entry("192.0.2.1")], "ib0": [Entry("192.0.2.9")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: here)
    assert cluster._addresses(None) == {"192.0.2.1", "192.0.2.9"}
    assert cluster._addresses("ib0") == cluster._addresses("192.0.2.9") == {"192.0.2.9"}
    with pytest.raises(InputError, match=r"ib7(.|\n)*eth0 \(192\.0\.2\.1\)"):
        cluster._addresses("ib7")
    assert "-a 192.0.2.9 " in script(scheduler="slurm", address="ib0")


@needs_parsl
def test_a_folder_that_scripts_can_not_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"output\.directory"):
        batch_script(LOCAL, "/scratch/my runs/a")


# settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": "slurm"}, "workers"),
        ({"scheduler": "slurm", "workers": 4, "walltime": "4h"}, "walltime"),
        ({"scheduler": "slurm", "workers": 4, "walltime": "00:01:00"}, "too short"),
        ({"scheduler": "slurm", "workers": 4, "partition": "a b"}, "partition"),
        ({"scheduler": "slurm", "workers": 4, "options": ["qos=x"]}, "options"),
        ({"scheduler": "slurm", "workers": 4, "options": ["-p x\nrm -r y"]}, "options"),
        ({"scheduler": "slurm", "workers": 4, "options": ["--"]}, "no option of slurm"),
        ({"scheduler": "slurm", "workers": 4, "options": ["--time=60"]}, "set walltime"),
        ({"scheduler": "slurm", "workers": 4, "options": ["-pgpu"]}, "set partition"),
        ({"scheduler": "pbs", "workers": 4, "options": ["-l select=2"]}, "set nodes and workers"),
        ({"scheduler": "slurm", "workers": 4, "image": "a/b"}, "'image' means nothing"),
        ({"scheduler": "local", "workers": 4, "partition": "a"}, "'partition' means nothing"),
        ({"scheduler": "pbs", "workers": 4, "min_jobs": 3, "max_jobs": 2}, "above max_jobs"),
        ({"scheduler": "kubernetes", "workers": 4, "memory": 8}, "needs 'image'"),
        ({**KUBERNETES, "workers": 4, "volumes": {"my_data": "/scratch"}}, "'my_data' is no name"),
        ({**KUBERNETES, "workers": 4, "partition": "Chem"}, "'Chem' is no name"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClusterSettings(**settings)


def test_the_section_of_a_recipe() -> None:
    jobs = ["cluster.scheduler=slurm", "cluster.workers=32", "cluster.walltime=12:00:00"]
    recipe = load_recipe("stability", [*jobs, "cluster.max_jobs=4"])
    assert recipe.cluster is not None
    assert recipe.cluster.total_workers == 128
    assert recipe.cluster.walltime_seconds == 12 * 3600
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(RecipeError, match=r"cluster\.workers"):
        load_recipe("stability", [*jobs, "workers=4"])
    with pytest.raises(RecipeError, match=r"(?s)cluster\.partitoin.*'partition'"):
        load_recipe("stability", [*jobs, "cluster.partitoin=cpu"])


def test_what_is_missing_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slurm = ClusterSettings(scheduler="slurm", workers=4)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"nucleate\[cluster\]"):
        check_cluster(slurm, tmp_path)
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="sbatch"):
        check_cluster(slurm, tmp_path)
    check_cluster(LOCAL, tmp_path)


def test_a_run_takes_its_workers_from_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[Any, ...]] = []

    class Pool(nullcontext[None]):
        def __init__(self, *args: Any, potential: str) -> None:
            made.append((*args, potential))
            super().__init__()

    monkeypatch.setattr(cluster, "ClusterPool", Pool)
    with design.potential_pool(cluster=LOCAL, folder=tmp_path) as potential:
        assert isinstance(potential.pool, Pool)
    assert made == [(LOCAL, tmp_path, "chgnet")]
