"""The section ``cluster`` of a recipe: the batch jobs whose workers evaluate crystals."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import model_validator

from nucleate.config import Settings, SettingsError, option, written_as

Word = Annotated[str, written_as(r"^[^\s'\"]+$", "one word, without blanks and quotation marks")]
SchedulerOption = Annotated[str, written_as(r"^-[^\n]+$", "an option that begins with a dash")]
Mount = Annotated[str, written_as(r"^/[^\s]*$", "an absolute path without blanks")]
Walltime = Annotated[
    str,
    written_as(
        r"^\d{1,4}:[0-5]\d:[0-5]\d$",
        "hours, minutes and seconds as HH:MM:SS, such as 01:30:00",
    ),
]

UNUSED = {
    "slurm": ("image", "volumes"),
    "pbs": ("image", "volumes"),
    "kubernetes": ("account", "nodes", "options"),
    "local": ("partition", "account", "nodes", "memory", "options", "address", "image", "volumes"),
}
"""Scheduler: keys that mean nothing to it."""

KEYS_OF_OPTIONS = {
    "slurm": {
        "-p --partition": "partition",
        "-A --account": "account",
        "-t --time": "walltime",
        "-N --nodes": "nodes",
        "--mem": "memory",
        "-c --cpus-per-task -n --ntasks --ntasks-per-node": "workers",
    },
    "pbs": {
        "-q": "partition",
        "-A": "account",
        "-lwalltime": "walltime",
        "-lselect -lnodes -lncpus": "nodes and workers",
        "-lmem": "memory",
    },
}
"""Scheduler: options of its command that keys of the section stand for."""

KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A label as of RFC 1123."""


class ClusterSettings(Settings):
    """Pilot jobs: each takes evaluations one after another until its time is up."""

    scheduler: Literal["slurm", "pbs", "kubernetes", "local"] = option(
        description="who starts the jobs; 'local' starts them on this machine, to try things out"
    )
    workers: int = option(description="processes that evaluate on each node", ge=1, le=4096)
    partition: Word | None = option(
        None, description="partition (SLURM), queue (PBS) or namespace (Kubernetes) of the jobs"
    )
    account: Word | None = option(None, description="account or project that is charged")
    walltime: Walltime = option(
        "01:00:00", description="limit of one job, HH:MM:SS; a job that has ended is replaced"
    )
    nodes: int = option(1, description="nodes of one job", ge=1, le=10_000)
    memory: int | None = option(None, description="memory of a node for the job", unit="GB", ge=1)
    min_jobs: int = option(0, description="jobs that are kept even when idle", ge=0, le=10_000)
    max_jobs: int = option(1, description="most jobs at a time", ge=1, le=10_000)
    setup: str = option(
        "", description="shell lines run on a node before its workers, such as 'module load ...'"
    )
    options: tuple[SchedulerOption, ...] = option(
        (), description="further options of sbatch or qsub, such as '--qos=long'"
    )
    address: Word | None = option(
        None,
        description="network interface or IP address of this machine that the nodes connect to; "
        "null for the first that they reach",
    )
    image: Word | None = option(None, description="container image, with nucleate[cluster] in it")
    volumes: dict[Word, Mount] = option(
        dict,
        description="persistent volume claims by name, and where they are mounted; one holds the "
        "folder of the runs at the same path as here",
    )

    @model_validator(mode="after")
    def _fits_the_scheduler(self) -> Self:
        for name in UNUSED[self.scheduler]:
            if getattr(self, name) != type(self).model_fields[name].get_default(
                call_default_factory=True
            ):
                raise SettingsError(
                    f"'{name}' means nothing to the scheduler '{self.scheduler}'",
                    f"Remove cluster.{name}.",
                )
        if self.min_jobs > self.max_jobs:
            raise SettingsError(
                f"min_jobs ({self.min_jobs}) is above max_jobs ({self.max_jobs})",
                "Lower cluster.min_jobs or raise cluster.max_jobs.",
            )
        if self.walltime_seconds < MIN_WALLTIME:
            raise SettingsError(
                f"walltime {self.walltime} is too short", "Give five minutes or more: '00:05:00'."
            )
        if self.scheduler == "kubernetes":
            for name in ("image", "memory", "volumes"):
                if not getattr(self, name):
                    raise SettingsError(f"Kubernetes needs '{name}'", f"Add cluster.{name}.")
            for name in (self.partition or "default", *self.volumes):
                if not KUBERNETES_NAME.fullmatch(name):
                    raise ValueError(
                        f"{name!r} is no name in Kubernetes: those of namespaces and volumes have "
                        "lower-case letters, digits and hyphens, 63 at most"
                    )
        for entry in self.options:
            self._check_option(entry)
        return self

    def _check_option(self, entry: str) -> None:
        """Refuse an option that would contradict a key."""
        given = re.match(r"--[\w-]+|-l *\w+|-\w", entry)
        if given is None:
            raise ValueError(f"{entry!r} is no option of {self.scheduler}")
        for options, key in KEYS_OF_OPTIONS.get(self.scheduler, {}).items():
            if given[0].replace(" ", "") in options.split():
                raise ValueError(f"instead of the option {entry!r} set {key} in this section")

    @property
    def walltime_seconds(self) -> int:
        """Limit of one job in seconds."""
        hours, minutes, seconds = (int(part) for part in self.walltime.split(":"))
        return 3600 * hours + 60 * minutes + seconds

    @property
    def total_workers(self) -> int:
        """Processes that evaluate when all jobs run."""
        return self.workers * self.nodes * self.max_jobs


MIN_WALLTIME = 300  # seconds: a node's workers take a good part of a minute to start
