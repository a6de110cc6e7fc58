"""One writer for one run: a lock file that names its process and outlives no crash."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from nucleate.errors import CheckpointError
from nucleate.store.filesystem import storage_errors


class RunLock:
    """Lock file with host, process number and the process's start time.

    A lock whose process is gone (same host; number free, or given to a younger process) is stale
    and is taken over. A lock from another host can't be judged and is respected.

    Args:
        path: the lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            CheckpointError: another process has it.
            StorageError: the folder is not writable.
        """
        content = json.dumps(_identity(os.getpid())).encode()
        # The file appears with its content at once: written aside, then linked.
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with storage_errors(self.path, "lock"):
            draft.write_bytes(content)
            try:
                for _ in range(3):
                    try:
                        os.link(draft, self.path)
                    except FileExistsError:
                        self._remove_if_stale()
                        continue
                    self._held = True
                    return
            finally:
                draft.unlink(missing_ok=True)
        raise self._refusal(self._owner())

    def release(self) -> None:
        """Give the lock back, if this object holds it."""
        if self._held:
            self._held = False
            if self._owner() == _identity(os.getpid()):
                self.path.unlink(missing_ok=True)

    def _owner(self) -> dict[str, object]:
        return _read(self.path)

    def _remove_if_stale(self) -> None:
        owner = self._owner()
        if owner and owner.get("host") != platform.node():
            raise self._refusal(owner)
        pid = owner.get("pid")
        if isinstance(pid, int) and _identity(pid) == owner and _alive(pid):
            raise self._refusal(owner)
        # Renaming lets only one of several contenders remove this very lock.
        grave = self.path.with_name(f".{self.path.name}.{os.getpid()}.stale")
        try:
            self.path.replace(grave)
        except FileNotFoundError:
            return
        if _read(grave) != owner:  # another contender took over in between: its lock stays
            grave.replace(self.path)
            raise self._refusal(self._owner())
        grave.unlink(missing_ok=True)

    def _refusal(self, owner: dict[str, object]) -> CheckpointError:
        return CheckpointError(
            f"The run {self.path.parent} is in use.",
            f"Process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')} writes it.",
            f"Wait for it or stop it; if you know that it is gone, remove {self.path}.",
        )


def _read(path: Path) -> dict[str, object]:
    try:
        owner = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _identity(pid: int) -> dict[str, object]:
    """Host, number and start time (clock ticks since boot; 0 where /proc has none)."""
    try:
        # The command in field 2 may hold blanks and brackets; count from its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        started = int(fields[19])
    except (OSError, IndexError, ValueError):
        started = 0
    return {"host": platform.node(), "pid": pid, "started": started}
