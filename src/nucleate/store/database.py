"""An SQLite file that survives a kill: how it is opened, versioned and written.

Write-ahead-log mode, so that others read while one writes; on network file systems, where shared
memory is not coherent, a rollback journal. Every commit reaches the disk before it returns.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from nucleate.errors import CheckpointError, NucleateError
from nucleate.store.filesystem import is_network_path
from nucleate.store.values import sqlite_error

BUSY_SECONDS = 60.0
"""So long a writer waits for another one."""


class Database:
    """A file of one schema.

    Args:
        path: SQLite file, made if absent (its folder must exist), or ``":memory:"``.
        read_only: open for reading while another process writes.

    Attributes:
        kind: what the file is, for messages.
        version: of the schema.
        schema: statements that make it.
        upgrades: statements that bring a file of an earlier version to the next one.
        remedy: what to do about a file of another version.

    Raises:
        StorageError: the file can't be made or written.
        CheckpointError: it is no file of this kind and version.
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    schema: ClassVar[str]
    upgrades: ClassVar[Mapping[int, str]] = {}
    remedy: ClassVar[str]

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        self.read_only = read_only
        self._lock = threading.RLock()
        with self._translated("open"):
            self._connection = self._connect()
            try:
                self._prepare()
            except (sqlite3.Error, NucleateError):
                self._connection.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        target, uri = self.path, False
        if self.read_only:
            if not Path(self.path).is_file():
                raise CheckpointError(
                    f"There is no {self.kind} at {self.path}.",
                    fix="Name the folder of a run that has begun.",
                )
            target, uri = f"{Path(self.path).resolve().as_uri()}?mode=ro", True
        return sqlite3.connect(
            target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
        )

    def _prepare(self) -> None:
        self._check_version()
        if self.read_only:
            return
        connection = self._connection
        if self.path != ":memory:":
            mode = "DELETE" if is_network_path(Path(self.path)) else "WAL"
            connection.execute(f"PRAGMA journal_mode = {mode}")
        # FULL: a checkpoint, which is fsynced, must never be ahead of the rows that it counts.
        connection.execute("PRAGMA synchronous = FULL")
        if self._found_version() == self.version:
            return
        with self._transaction("create"):
            self._check_version()  # another process may have made the file meanwhile
            found = self._found_version()
            statements = [self.upgrades[v] for v in range(found, self.version)] if found else []
            if found == 0:
                statements = [self.schema]
            for statement in ";".join(statements).split(";"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {self.version}")

    def _found_version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _check_version(self) -> None:
        """Refuse what is neither of this version nor can become so."""
        found = self._found_version()
        tables = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        new = found == 0 and tables == 0 and not self.read_only
        if found == self.version or found in self.upgrades or new:
            return
        raise CheckpointError(
            f"{self.path} is not a nucleate {self.kind} of version {self.version}.",
            f"Its version is {found}.",
            self.remedy,
        )

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise sqlite_error(self.path, action, error) from error

    @contextmanager
    def _transaction(self, action: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated(action):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._translated("read"):
            return self._connection.execute(query, parameters).fetchall()

    def problems(self) -> list[str]:
        """What SQLite's integrity check finds wrong; empty if sound."""
        return [
            f"integrity: {row[0]}" for row in self._rows("PRAGMA integrity_check") if row[0] != "ok"
        ]

    def close(self) -> None:
        """Close the file; what was committed stays."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
