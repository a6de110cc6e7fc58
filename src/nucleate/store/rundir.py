"""One run, one folder.

::

    runs/<name>/
      manifest.json     versions, hashes, seeds, command: what one needs to repeat the run
      recipe.yaml       the recipe with every default filled in
      run.sqlite        the record of truth
      log.jsonl         one line of metrics for each step
      checkpoints/      the last two
      tensorboard/      where the package is installed
      lock              the process that writes here
    runs/evaluations.sqlite     what all runs of the folder have computed
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from nucleate.errors import CheckpointError, InputError, MissingDependencyError
from nucleate.store.cache import EvaluationCache
from nucleate.store.checkpoint import (
    Checkpoint,
    checkpoint_problem,
    checkpoints,
    latest_checkpoint,
    prune_checkpoints,
    write_checkpoint,
)
from nucleate.store.experience import ExperienceStore
from nucleate.store.filesystem import replace_file, sha256_file, storage_errors
from nucleate.store.lock import RunLock

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
STORE = "run.sqlite"
LOG = "log.jsonl"
LOCK = "lock"
KEPT_CHECKPOINTS = 2
_PACKAGES = ("torch", "numpy", "scipy", "pymatgen", "chgnet", "moyopy", "ase", "pydantic")

logger = logging.getLogger(__name__)


class RunDirectory:
    """The folder of a run; use :meth:`create` or :meth:`open`.

    Attributes:
        path: the folder.
        lock: held from creation or opening for writing until :meth:`close`.
    """

    def __init__(self, path: Path, lock: RunLock | None) -> None:
        self.path = path
        self.lock = lock
        self._tensorboard: Any = None

    # -- life ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        recipe: Mapping[str, Any],
        *,
        unique: bool = False,
        command: list[str] | None = None,
        seeds: Mapping[str, int] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> RunDirectory:
        """Make the folder of a new run and lock it.

        Args:
            root: folder of all runs, made if absent.
            name: name of the run.
            recipe: the full recipe as plain data.
            unique: where the name is taken, append ``-2``, ``-3``, ...
            command: what started the run; this process's own by default.
            seeds: seeds by purpose.
            files: model, hull and data files, by role, that the results depend on; hashed here.

        Raises:
            InputError: the name is taken, or is no folder name.
            StorageError: the folder can't be written.
        """
        import yaml

        if not name or name in (".", "..") or Path(name).name != name:
            raise InputError(
                f"{name!r} can't be the name of a run.", fix="Use one folder name without '/'."
            )
        path = _claim_folder(Path(root), name, unique)
        run = cls(path, RunLock(path / LOCK))
        assert run.lock is not None
        run.lock.acquire()
        replace_file(
            path / RECIPE,
            yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).encode(),
        )
        run._write_manifest(
            {
                "created": _now(),
                "resumed": [],
                "command": list(sys.argv) if command is None else command,
                "recipe": dict(recipe),
                "seeds": dict(seeds or {}),
                **_environment(),
                "files": {role: _file_entry(file) for role, file in (files or {}).items()},
            }
        )
        return run

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False) -> RunDirectory:
        """Open a run, to read it, or to go on writing it (locks it).

        Raises:
            CheckpointError: no run there, or another process is writing it.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise CheckpointError(
                f"{folder} is not the folder of a run.",
                f"It has no {MANIFEST}.",
                "Name a folder below runs/.",
            )
        run = cls(folder, None if read_only else RunLock(folder / LOCK))
        if run.lock is not None:
            run.lock.acquire()
            manifest = run.manifest()
            manifest["resumed"] = [*manifest.get("resumed", []), _now()]
            run._write_manifest(manifest)
        return run

    def close(self) -> None:
        """Flush the logs and release the lock."""
        if self._tensorboard:  # False where the package is not installed
            self._tensorboard.close()
        self._tensorboard = None
        if self.lock is not None:
            self.lock.release()

    def discard_unused(self) -> None:
        """Close the run, and remove its folder if nothing has been spent or written in it yet."""
        if {entry.name for entry in self.path.iterdir()} <= {MANIFEST, RECIPE, STORE, LOCK}:
            with self.store() as store:
                used = bool(store.spending()) or store.last_step() is not None
            if not used:
                for name in (STORE, RECIPE, MANIFEST):
                    (self.path / name).unlink(missing_ok=True)
                self.close()  # the lock goes last
                self.path.rmdir()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- manifest ------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The manifest as data.

        Raises:
            CheckpointError: unreadable.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / MANIFEST).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / MANIFEST} can't be read.",
                str(error),
                "Restore it from a copy or start a new run.",
            ) from error
        return content

    def update_manifest(self, *, files: Mapping[str, Path] | None = None, **entries: Any) -> None:
        """Add entries, such as hashes of hull and prior, to the manifest."""
        manifest = self.manifest()
        manifest.update(entries)
        hashed = {role: _file_entry(file) for role, file in (files or {}).items()}
        manifest["files"] = {**manifest.get("files", {}), **hashed}
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=2, default=str)
        replace_file(self.path / MANIFEST, f"{text}\n".encode())

    # -- contents ------------------------------------------------------------------------------

    def store(self, *, read_only: bool = False) -> ExperienceStore:
        """Open the run's store."""
        return ExperienceStore(self.path / STORE, read_only=read_only)

    def cache(self, name: str) -> EvaluationCache:
        """Open the cache that this run shares with the others of its folder.

        Args:
            name: file, relative to the folder of all runs.
        """
        source = f"{self.path.resolve().name}, {self.manifest()['created']}"
        return EvaluationCache(self.path.resolve().parent / name, source)

    def checkpoint(self, step: int, state: Any) -> Path:
        """Write a checkpoint, all or nothing, and drop all but the last two.

        Args:
            step: last step whose effects ``state`` contains.
            state: nesting of tensors, arrays and plain values, as in
                :func:`nucleate.store.checkpoint.pack_state`.
        """
        written = write_checkpoint(self.path / "checkpoints", step, state)
        prune_checkpoints(self.path / "checkpoints", KEPT_CHECKPOINTS)
        return written

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; warns of newer ones that are not. None before the first.

        Raises:
            CheckpointError: none of those that exist is whole.
        """
        found = latest_checkpoint(self.path / "checkpoints")
        if found is not None:
            for reason in found.skipped:
                logger.warning("Skipped a checkpoint: %s Using step %d.", reason, found.step)
        return found

    # -- logs ----------------------------------------------------------------------------------

    def log(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        tensorboard: Literal["auto"] | bool = "auto",
    ) -> None:
        """Append a step's metrics to ``log.jsonl`` and, where it is installed, to TensorBoard.

        Args:
            step: number of the step.
            metrics: names such as ``reward/mean`` and their values.
            tensorboard: "auto" writes where the package is installed, True demands it.

        Raises:
            MissingDependencyError: TensorBoard is demanded and absent.
            StorageError: the log can't be written.
        """
        line = json.dumps({"step": step, **{k: _plain(v) for k, v in metrics.items()}})
        with storage_errors(self.path / LOG), (self.path / LOG).open("ab") as file:
            file.write(f"{line}\n".encode())
        if tensorboard is False:
            return
        if self._tensorboard is None:
            self._tensorboard = _summary_writer(self.path / "tensorboard", step)
        if self._tensorboard is False:
            if tensorboard is True:
                raise MissingDependencyError(
                    "TensorBoard logs were asked for, but the package is not installed.",
                    fix='pip install "nucleate[track]"',
                )
            return
        for name, value in metrics.items():
            number = _plain(value)
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                self._tensorboard.add_scalar(name, number, step)

    def read_log(self) -> list[dict[str, Any]]:
        """All whole lines of ``log.jsonl``; a last line cut short by a crash is left out."""
        path = self.path / LOG
        if not path.is_file():
            return []
        entries = []
        lines = path.read_text("utf-8", errors="replace").split("\n")
        for i, line in enumerate(lines):
            if not line:
                continue
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                if i == len(lines) - 1:
                    break
                raise CheckpointError(
                    f"{path}, line {i + 1}: not JSON.",
                    str(error),
                    "Remove that line; the same numbers are in run.sqlite.",
                ) from error
        return entries

    def truncate_log(self, step: int) -> None:
        """Drop what was logged after ``step``, and a torn last line; used at resume."""
        path = self.path / LOG
        if path.is_file():
            kept = [entry for entry in self.read_log() if entry["step"] <= step]
            replace_file(path, "".join(f"{json.dumps(entry)}\n" for entry in kept).encode())

    # -- check ---------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """What is wrong with this run: files that changed, checkpoints cut short, a broken store.

        Returns:
            One sentence for each problem; empty if all is sound.
        """
        problems = []
        for role, entry in self.manifest().get("files", {}).items():
            file = Path(entry["path"])
            if not file.exists():
                problems.append(f"{role}: {file} is gone")
            elif _hash(file) != entry["sha256"]:
                problems.append(f"{role}: {file} has changed since the run")
        for path in checkpoints(self.path / "checkpoints"):
            if reason := checkpoint_problem(path):
                problems.append(f"{path.name}: {reason}")
        if (self.path / STORE).is_file():
            with self.store(read_only=True) as store:
                problems += [f"{STORE}: {problem}" for problem in store.problems()]
        else:
            problems.append(f"{STORE} is missing")
        try:
            self.read_log()
        except CheckpointError as error:
            problems.append(error.what)
        return problems


def _claim_folder(root: Path, name: str, unique: bool) -> Path:
    """Make an empty folder for the run; two processes never get the same one."""
    with storage_errors(root / name, "make the folder"):
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError as error:
                if unique:
                    number += 1
                    continue
                raise InputError(
                    f"The run {path} exists already.",
                    fix="Choose another --name, resume it with --resume, or remove the folder.",
                ) from error
            return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hash(path: Path) -> str:
    """sha256 of a file, or of a folder's file names and hashes."""
    if path.is_file():
        return sha256_file(path)
    import hashlib

    total = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        total.update(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n".encode())
    return total.hexdigest()


def _file_entry(path: Path) -> dict[str, str]:
    if not path.exists():
        raise InputError(f"{path} does not exist.", fix="Check the path in the recipe.")
    return {"path": str(path.resolve()), "sha256": _hash(path)}


def _environment() -> dict[str, Any]:
    versions = {}
    for package in ("nucleate", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "git_sha": _git_sha(),
    }


def _git_sha() -> str | None:
    """Commit of the source tree that this package is run from, None if it is installed."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],  # noqa: S607  wherever git is
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _plain(value: Any) -> Any:
    """A JSON value; numbers that are not finite become null."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _summary_writer(path: Path, step: int) -> Any:
    """A TensorBoard writer that hides what was logged from ``step`` on; False if not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(path), purge_step=step)
