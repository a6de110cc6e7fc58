"""Workers in batch jobs: a pool on SLURM, PBS or Kubernetes, by Parsl's high-throughput executor.

A batch job is a pilot: its workers take one task after another, so that thousands of evaluations
of seconds are a handful of entries of the queue. Each worker keeps a process of its own for the
tasks, in which a hang costs its time-out and a crash its evaluation, as on one machine
(:mod:`nucleate.execution.pilot`). A task whose worker, node or job is taken away is run again
elsewhere; what has been evaluated is never evaluated again.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.errors import InputError, MissingDependencyError
from nucleate.execution.chunks import PoolLostError, pool_stopped
from nucleate.execution.meter import Meter, current_meter, timed
from nucleate.execution.pilot import run_task
from nucleate.execution.pool import Pool
from nucleate.execution.settings import ClusterSettings
from nucleate.physics.potentials import WorkerCrashError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parsl.executors import HighThroughputExecutor
    from parsl.providers.base import ExecutionProvider

    from nucleate.execution.local import Spec

LABEL = "nucleate"
LOST_TRIES = 2  # further tries for a task whose worker was taken away
FAILED_JOBS = 3  # so many jobs in a row that never worked are the end of the run
IDLE = 300.0  # seconds without work after which jobs above the least number are given back
HEARTBEAT = 5  # seconds between signs of life
MISSED_HEARTBEATS = 12  # so many missing ones mean that a node, or the run, is gone
DRAIN = 600.0  # seconds before the end of a job, at most, in which it takes no new task
SUBMIT_TIMEOUT = 60  # seconds for sbatch, squeue, qsub, ...
COMMANDS = {"slurm": "sbatch", "pbs": "qsub"}


# the pool -------------------------------------------------------------------------------------


class ClusterPool(Pool):
    """Workers in batch jobs, with a time-out for each task.

    Args:
        settings: which jobs.
        folder: for scripts, logs and keys; the nodes have to see it under the same path.
        timeout: seconds that one task may run, None for no limit.
        potential: a potential that each worker builds when it starts: its name, or a mapping of
            name and settings.
        heartbeat: seconds between signs of life; a worker that died is noticed after one, a node
            after twelve.

    Attributes:
        n_workers: processes that evaluate when all jobs run.
        workers_here: those that take cores of this machine.

    Raises:
        MissingDependencyError: Parsl is not installed.
        InputError: no job can be submitted from this machine, or the folder's name won't do.

    Example:
        >>> jobs = ClusterSettings(scheduler="slurm", partition="cpu", workers=64, max_jobs=4)
        >>> with ClusterPool(jobs, "runs/mine/cluster") as pool:
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    least_atoms = 1

    def __init__(
        self,
        settings: ClusterSettings,
        folder: str | Path,
        *,
        timeout: float | None = None,
        potential: Spec | None = None,
        heartbeat: int = HEARTBEAT,
    ) -> None:
        self.folder = check_cluster(settings, folder)
        from parsl import Config, DataFlowKernel
        from parsl.concurrent import ParslPoolExecutor

        self.settings, self.timeout = settings, timeout
        self.n_workers = settings.total_workers
        self.workers_here = self.n_workers if settings.scheduler == "local" else 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._potential = json.dumps(potential, sort_keys=True)
        self._executor = _executor(settings, _provider(settings), heartbeat)
        self._kernel = DataFlowKernel(
            Config(
                executors=[self._executor],
                run_dir=str(self.folder),
                retries=LOST_TRIES,
                retry_handler=_cost_of_retry,
                strategy="simple",
                max_idletime=IDLE,
                initialize_logging=False,
            )
        )
        self._parsl = ParslPoolExecutor(dfk=self._kernel)
        self._unfinished: set[Future[Any]] = set()
        self._closed = threading.Event()

    def schedule(
        self, fn: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Future[Any]:
        """Like :meth:`submit` with this task's own time-out in seconds.

        A task under which three workers were lost raises :class:`WorkerCrashError`.
        """
        if self._closed.is_set():
            raise RuntimeError("the pool was shut down")
        outer: Future[Any] = concurrent.futures.Future()
        try:
            task = pickle.dumps((timed, (fn, *args)))
        except Exception as error:  # what can't be sent, as the future's error
            outer.set_exception(error)
            return outer
        self._unfinished.add(outer)
        inner = self._parsl.submit(run_task, self._potential, task, timeout)
        inner.add_done_callback(partial(self._finish, outer, current_meter(), timeout))
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the jobs: after the queued tasks, or at once if ``cancel_futures``.

        Ended at once, tasks that have not finished raise :class:`WorkerCrashError`.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if cancel_futures:
            self._end()
        elif wait:
            concurrent.futures.wait(list(self._unfinished))
            self._end()
        else:
            threading.Thread(target=self._end_after_tasks, name="cluster-end").start()

    def _end_after_tasks(self) -> None:
        concurrent.futures.wait(list(self._unfinished))
        self._end()

    def _end(self) -> None:
        self._kernel.cleanup()
        for future in list(self._unfinished):
            self._unfinished.discard(future)
            if future.set_running_or_notify_cancel():
                future.set_exception(pool_stopped())

    def _finish(
        self, outer: Future[Any], meter: Meter | None, timeout: float | None, done: Future[Any]
    ) -> None:
        """Settle a task's future, unless the pool's end has done so."""
        from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

        try:
            self._unfinished.remove(outer)
        except KeyError:
            return
        if not outer.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            try:
                success, value = pickle.loads(done.result())  # noqa: S301  from our own worker
            except Exception as unreadable:  # of a class that is not known here
                success, value = False, unreadable
            if meter is not None and success:
                meter.add(value.seconds)
            elif meter is not None and isinstance(value, TimeoutError):
                meter.add(timeout or 0.0)
            outer.set_result(value.result) if success else outer.set_exception(value)
        elif isinstance(error, (WorkerLost, ManagerLost)):
            tries = f"{LOST_TRIES + 1} workers were lost under this task"
            outer.set_exception(WorkerCrashError(tries, f"The last: {error}."))
        elif self._executor.bad_state_is_set:
            outer.set_exception(_lost(self._executor.executor_exception, self._kernel.run_dir))
        else:
            outer.set_exception(error)


def _cost_of_retry(error: Exception, _: Any) -> float:
    """A lost worker is no fault of its task; any other failure is final."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return 1 if isinstance(error, (WorkerLost, ManagerLost)) else LOST_TRIES + 1


def _lost(error: BaseException | None, folder: str) -> PoolLostError:
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return PoolLostError(
        "No batch job works any more.",
        " ".join(told[-3:])[-500:],
        f"Look into {folder}/submit_scripts and {folder}/{LABEL}, or what 'kubectl logs' says of "
        "the pods, mend the section 'cluster', and try again; what was evaluated is kept.",
    )


# jobs -----------------------------------------------------------------------------------------


def check_cluster(settings: ClusterSettings, folder: str | Path) -> Path:
    """Refuse a cluster that this machine can't submit jobs to, without submitting any.

    Args:
        settings: which jobs.
        folder: for scripts, logs and keys, or one that it will lie in.

    Returns:
        The folder's absolute path.

    Raises:
        MissingDependencyError: Parsl, or the client of Kubernetes, is not installed.
        InputError: the scheduler's commands are not here, no cluster of Kubernetes is known, this
            machine has not the address, or the jobs can't name or see the folder.
    """
    if find_spec("parsl") is None:
        raise MissingDependencyError(
            "The section 'cluster' needs Parsl, which is not installed.",
            fix='pip install "nucleate[cluster]"',
        )
    if settings.scheduler == "kubernetes" and find_spec("kubernetes") is None:
        raise MissingDependencyError(
            "The scheduler 'kubernetes' needs its Python client, which is not installed.",
            fix="pip install kubernetes",
        )
    command = COMMANDS.get(settings.scheduler)
    if command is not None and shutil.which(command) is None:
        raise InputError(
            f"There is no command {command} on this machine.",
            f"The scheduler {settings.scheduler!r} takes jobs by it.",
            "Start nucleate on a machine of the cluster that may submit jobs.",
        )
    if settings.scheduler == "kubernetes":
        _check_kubernetes(settings)
    if settings.scheduler != "local":
        _addresses(settings.address)
    return _usable(Path(folder), settings)


def _check_kubernetes(settings: ClusterSettings) -> None:
    """Read where the cluster is; nothing is asked of it."""
    from parsl.providers.kubernetes import kube

    try:
        _provider(settings)
    except kube.config.config_exception.ConfigException as error:
        raise InputError(
            "No cluster of Kubernetes is known here.",
            f"{error}",
            "Have 'kubectl get pods' work first: it reads ~/.kube/config, or the file that "
            "KUBECONFIG names.",
        ) from error


def batch_script(settings: ClusterSettings, folder: str | Path) -> str:
    """The script of one job, as it would be submitted, by Parsl's own templates.

    PORT stands for the port that is chosen when the pool starts.

    Args:
        settings: which jobs; nothing is submitted.
        folder: where the pool would put logs and keys.

    Raises:
        MissingDependencyError: Parsl is not installed.
        InputError: the folder's name won't do.
    """
    check_cluster(ClusterSettings(scheduler="local", workers=1), folder)
    executor: Any = _executor(settings, None, HEARTBEAT)
    executor.run_dir = str(_usable(Path(folder), settings) / "000")
    executor.cert_dir = f"{executor.logdir}/certificates"
    executor.logconf_path = None
    executor.worker_port = "PORT"
    executor.initialize_scaling()
    command = executor.launch_cmd.format(block_id=0)
    job = f"parsl.{LABEL}.block-0"
    if settings.scheduler == "kubernetes":
        from parsl.providers.kubernetes.template import template_string

        arguments = provider_arguments(settings) | pod_limits(settings)
        setup = arguments.pop("worker_init")
        shown = [f"# {name}: {value}" for name, value in arguments.items()]
        return "\n".join([*shown, "", ""]) + template_string.format(
            worker_init=setup, command=command
        )
    if settings.scheduler == "local":
        provider = _provider(settings)
        return f"{provider.worker_init}{provider.launcher(command, 1, 1, '')}"
    provider = _provider(settings, dry=True)
    with tempfile.TemporaryDirectory() as scripts:
        provider.script_dir = scripts
        provider.submit(command, 1, job)
        (script,) = Path(scripts).iterdir()
        return script.read_text("utf-8").replace(scripts, f"{executor.run_dir}/submit_scripts")


def provider_arguments(settings: ClusterSettings) -> dict[str, Any]:
    """What Parsl's provider of the scheduler is told."""
    s = settings
    arguments: dict[str, Any] = {
        "init_blocks": max(s.min_jobs, 1),
        "min_blocks": s.min_jobs,
        "max_blocks": s.max_jobs,
        "worker_init": _setup(s),
    }
    if s.scheduler == "slurm":
        return arguments | {
            "partition": s.partition,
            "account": s.account,
            "walltime": s.walltime,
            "nodes_per_block": s.nodes,
            "cores_per_node": s.workers,
            "mem_per_node": s.memory,
            "exclusive": False,
            "scheduler_options": "\n".join(f"#SBATCH {entry}" for entry in s.options),
            "cmd_timeout": SUBMIT_TIMEOUT,
        }
    if s.scheduler == "pbs":
        named = {"-q": s.partition, "-A": s.account}
        lines = [f"{flag} {value}" for flag, value in named.items() if value] + list(s.options)
        return arguments | {
            "walltime": s.walltime,
            "nodes_per_block": s.nodes,
            "cpus_per_node": s.workers,
            "select_options": f"mem={s.memory}gb" if s.memory else "",
            "scheduler_options": "\n".join(f"#PBS {line}" for line in lines),
            "cmd_timeout": SUBMIT_TIMEOUT,
        }
    if s.scheduler == "kubernetes":
        return arguments | {
            "namespace": s.partition or "default",
            "image": s.image,
            "init_cpu": s.workers,
            "max_cpu": s.workers,
            "init_mem": f"{s.memory}Gi",
            "max_mem": f"{s.memory}Gi",
            "persistent_volumes": list(s.volumes.items()),
        }
    return arguments


def pod_limits(settings: ClusterSettings) -> dict[str, Any]:
    """What makes a pod a job: it ends, once, and in time. Parsl's provider leaves this open.

    By default Kubernetes starts the container of a pod again for ever, so that jobs which can't
    work would never be seen to fail.
    """
    return {"restart_policy": "Never", "active_deadline_seconds": settings.walltime_seconds}


def _setup(settings: ClusterSettings) -> str:
    """Shell lines before the workers: here, with this environment, then the user's own."""
    lines = []
    if settings.scheduler != "kubernetes":
        lines.append(f"cd {shlex.quote(str(Path.cwd()))}")
        lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    return "\n".join([*lines, settings.setup.strip(), ""])


def _provider(settings: ClusterSettings, *, dry: bool = False) -> Any:
    """Parsl's provider of the scheduler; a dry one takes every command for done."""
    from parsl import launchers, providers

    kinds: Mapping[str, Any] = {
        "slurm": providers.SlurmProvider,
        "pbs": providers.PBSProProvider,
        "kubernetes": providers.KubernetesProvider,
        "local": providers.LocalProvider,
    }
    provider = kinds[settings.scheduler]
    if dry:
        done = (0, "Submitted batch job 0", "")
        provider = type(provider.__name__, (provider,), {"execute_wait": lambda *_: done})
    arguments = provider_arguments(settings)
    if settings.nodes > 1 and settings.scheduler == "slurm":
        # srun does not take over what sbatch was told
        arguments["launcher"] = launchers.SrunLauncher(
            overrides=f"--cpus-per-task={settings.workers}"
        )
    elif settings.nodes > 1:
        arguments["launcher"] = launchers.MpiExecLauncher()
    made = provider(**arguments)
    if settings.scheduler == "kubernetes":
        made.kube_client.create_namespaced_pod = partial(
            _create_pod, made.kube_client.create_namespaced_pod, pod_limits(settings)
        )
    return made


def _create_pod(create: Callable[..., Any], limits: Mapping[str, Any], **request: Any) -> Any:
    for name, value in limits.items():
        setattr(request["body"].spec, name, value)
    return create(**request)


def _executor(
    settings: ClusterSettings, provider: ExecutionProvider | None, heartbeat: int
) -> HighThroughputExecutor:
    from parsl.executors import HighThroughputExecutor
    from parsl.jobs.error_handlers import windowed_error_handler

    here = settings.scheduler == "local"
    drain = settings.walltime_seconds - min(DRAIN, settings.walltime_seconds / 5)
    executor = HighThroughputExecutor(
        label=LABEL,
        provider=provider,
        interchange_launch_cmd=[
            *(sys.executable, "-m", "nucleate.execution.interchange"),
            str(os.getpid()),
        ],
        address="127.0.0.1",
        max_workers_per_node=settings.workers,
        cores_per_worker=0.001 if here else 1.0,  # as many as asked for, on however few cores
        heartbeat_period=heartbeat,
        heartbeat_threshold=MISSED_HEARTBEATS * heartbeat,
        drain_period=None if here else int(drain),
        block_error_handler=partial(windowed_error_handler, threshold=FAILED_JOBS),
    )
    if not here:
        # given no address, Parsl asks a server on the internet for this machine's
        executor.all_addresses = _addresses(settings.address)
        executor.address = executor.all_addresses.copy().pop() if settings.address else None
    return executor


def _addresses(wanted: str | None) -> set[str]:
    """Addresses that nodes may reach this machine by.

    Raises:
        InputError: there is none, or not the one that is wanted.
    """
    import ipaddress
    import socket

    import psutil

    found = {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not ipaddress.ip_address(entry.address).is_loopback
    }
    if wanted is None and found:
        return set(found.values())
    if wanted is not None and wanted in found:
        return {found[wanted]}
    if wanted is not None and wanted in found.values():
        return {wanted}
    known = ", ".join(f"{name} ({address})" for name, address in found.items()) or "none"
    raise InputError(
        f"This machine has no network address {wanted or ''}".rstrip() + ".",
        f"Its interfaces: {known}.",
        "Set cluster.address to the one that the nodes can connect to.",
    )


def _usable(folder: Path, settings: ClusterSettings) -> Path:
    """The absolute path of a folder that shell scripts can name as it is, and that jobs see."""
    path = folder.resolve()
    if re.search(r"[^\w/.,+@%=:-]", str(path)):
        raise InputError(
            f"{path} can't hold the files of batch jobs.",
            "Its path has a space or another character that scripts of jobs can't name.",
            "Set output.directory to a folder with a plain path.",
        )
    mounts = settings.volumes.values()
    if settings.scheduler == "kubernetes" and not any(map(path.is_relative_to, mounts)):
        raise InputError(
            f"The pods don't see {path}.",
            f"Their volumes are mounted at {', '.join(mounts)}.",
            "Set output.directory to a folder of a volume that has the same path here and there.",
        )
    return path
