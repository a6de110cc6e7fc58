"""The record of truth of a run: every sampled crystal, every evaluation, every reward.

One SQLite file in write-ahead-log mode, so that reports read while the run writes (rollback
journal on network file systems, where shared memory is not coherent). What makes a resumed run
equal to an uninterrupted one:

* an evaluation is committed before the algorithm sees it, all of a step's evaluations of one
  property in one transaction, so that after a crash a step's evaluations are all there or none,
  and the batches that remain to be computed are the batches of an uninterrupted run;
* an evaluation row names the step that *spent* it. :meth:`ExperienceStore.rollback` keeps the
  values of abandoned steps but takes the step away; the step that asks for such a value again
  claims it and is charged for it, as if it had computed it. So no value is computed twice, and
  counters and rows still equal those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from nucleate.errors import CheckpointError, NucleateError
from nucleate.protocols import Status
from nucleate.store.filesystem import is_network_path
from nucleate.store.values import compact_json, finite, number, numbers, sqlite_error

SCHEMA_VERSION = 1
_BUSY_SECONDS = 60.0

_COLUMNS: Mapping[str, type] = {
    "step": np.int64,
    "position": np.int64,
    "digest": object,
    "space_group": np.int64,
    "formula": object,
    "log_prob": np.float64,
    "reward": np.float64,
    "bonus": np.float64,
    "status": object,
    "reason": object,
}

_SCHEMA = """
CREATE TABLE properties (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, unit TEXT NOT NULL);
CREATE TABLE evaluations (
    property INTEGER NOT NULL REFERENCES properties (id), digest TEXT NOT NULL, step INTEGER,
    value REAL, status TEXT NOT NULL, reason TEXT NOT NULL, seconds REAL NOT NULL,
    extra TEXT NOT NULL, PRIMARY KEY (property, digest)) WITHOUT ROWID;
CREATE INDEX evaluations_by_step ON evaluations (property, step);
CREATE TABLE crystals (
    step INTEGER NOT NULL, position INTEGER NOT NULL, digest TEXT NOT NULL,
    space_group INTEGER NOT NULL, formula TEXT NOT NULL, log_prob REAL, tokens BLOB NOT NULL,
    PRIMARY KEY (step, position)) WITHOUT ROWID;
CREATE INDEX crystals_by_digest ON crystals (digest);
CREATE TABLE rewards (
    step INTEGER NOT NULL, position INTEGER NOT NULL, reward REAL NOT NULL, bonus REAL NOT NULL,
    status TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (step, position)) WITHOUT ROWID;
CREATE TABLE steps (step INTEGER PRIMARY KEY, metrics TEXT NOT NULL, timings TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Evaluation:
    """What one property said of one crystal.

    Attributes:
        value: in the property's unit, NaN unless ``status`` is OK.
        status: how the evaluation ended.
        reason: why it did not end well, empty where OK.
        seconds: wall time spent on this crystal, s.
        extra: further numbers measured on the way.
    """

    value: float
    status: Status = Status.OK
    reason: str = ""
    seconds: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampledCrystal:
    """One row of what the policy drew; ``tokens`` by :func:`nucleate.store.packing.pack_batch`.

    Attributes:
        digest: content hash of the tokens.
        space_group: 1 to 230.
        formula: reduced formula.
        tokens: packed tokens.
        log_prob: nats, under the policy and condition that sampled it.
    """

    digest: str
    space_group: int
    formula: str
    tokens: bytes
    log_prob: float


@dataclass(frozen=True)
class Reward:
    """What the algorithm was told of one crystal: ``reward`` in all, ``bonus`` part of it."""

    reward: float
    bonus: float = 0.0
    status: Status = Status.OK
    reason: str = ""


class ExperienceStore:
    """Crystals, evaluations, rewards and step metrics of one run.

    Args:
        path: SQLite file, made if absent (its folder must exist), or ``":memory:"``.
        read_only: open for reading while another process writes.

    Raises:
        StorageError: the file can't be made or written.
        CheckpointError: the file is no store of this version.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        self._lock = threading.RLock()
        with self._translated("open"):
            self._connection = self._connect(read_only)
            try:
                self._prepare(read_only)
            except (sqlite3.Error, NucleateError):
                self._connection.close()
                raise

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        target, uri = self.path, False
        if read_only:
            if not Path(self.path).is_file():
                raise CheckpointError(
                    f"There is no store at {self.path}.",
                    fix="Name the folder of a run that has begun.",
                )
            target, uri = f"{Path(self.path).resolve().as_uri()}?mode=ro", True
        return sqlite3.connect(
            target, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
        )

    def _prepare(self, read_only: bool) -> None:
        connection = self._connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0
        if version != SCHEMA_VERSION and not (empty and version == 0 and not read_only):
            raise CheckpointError(
                f"{self.path} is not a nucleate store of version {SCHEMA_VERSION}.",
                f"Its version is {version}.",
                "Open it with the release that wrote it, or start a new run.",
            )
        if read_only:
            return
        if self.path != ":memory:":
            mode = "DELETE" if is_network_path(Path(self.path)) else "WAL"
            connection.execute(f"PRAGMA journal_mode = {mode}")
        # FULL: a checkpoint, which is fsynced, must never be ahead of the rows that it counts.
        connection.execute("PRAGMA synchronous = FULL")
        if empty:
            with self._transaction("create"):
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

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

    def close(self) -> None:
        """Close the file; what was committed stays."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- evaluations ---------------------------------------------------------------------------

    def lookup(self, digests: Iterable[str], key: str) -> dict[str, Evaluation]:
        """Known evaluations of a property, by digest; absent where there is none."""
        rows = self._rows(
            "SELECT digest, value, status, reason, seconds, extra FROM evaluations "
            "JOIN properties ON id = property WHERE key = ? "
            "AND digest IN (SELECT value FROM json_each(?))",
            (key, json.dumps(list(digests))),
        )
        return {
            digest: Evaluation(number(value), Status(status), reason, seconds, numbers(extra))
            for digest, value, status, reason, seconds, extra in rows
        }

    def record(
        self,
        step: int | None,
        key: str,
        evaluations: Mapping[str, Evaluation],
        *,
        name: str,
        unit: str = "",
        reused: Iterable[str] = (),
    ) -> int:
        """Write a step's evaluations of one property, in one transaction.

        Args:
            step: step that is charged for them; None for none, so that the first step that asks
                for one of them is charged for it.
            key: cache key of the property (name, settings, weights).
            evaluations: newly computed, by digest. A digest already known keeps its old value.
            name: name of the property.
            unit: its unit.
            reused: digests that the step asked for and found by :meth:`lookup`; those that no
                step is charged for (left by a rollback) are charged to this one.

        Returns:
            Number of evaluations charged to this step by this call.
        """
        with self._transaction("write an evaluation to") as connection:
            connection.execute(
                "INSERT OR IGNORE INTO properties (key, name, unit) VALUES (?, ?, ?)",
                (key, name, unit),
            )
            (identity,) = connection.execute(
                "SELECT id FROM properties WHERE key = ?", (key,)
            ).fetchone()
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        identity,
                        digest,
                        step,
                        finite(entry.value),
                        entry.status.value,
                        entry.reason,
                        entry.seconds,
                        compact_json(entry.extra),
                    )
                    for digest, entry in evaluations.items()
                ],
            )
            connection.executemany(
                "UPDATE evaluations SET step = ? WHERE property = ? AND digest = ? AND "
                "step IS NULL",
                [(step, identity, digest) for digest in dict.fromkeys(reused)],
            )
            return connection.total_changes - before

    def evaluations_spent(self, name: str, *, step: int | None = None) -> int:
        """Evaluations of a property charged to the run so far, or to one step.

        Failed evaluations count, cached ones don't; values left over from steps that were rolled
        back count from the moment a step asks for them again.
        """
        rows = self._rows(
            "SELECT COUNT(*) FROM evaluations JOIN properties ON id = property "
            "WHERE name = ? AND step IS NOT NULL AND step = COALESCE(?, step)",
            (name, step),
        )
        return int(rows[0][0])

    # -- steps ---------------------------------------------------------------------------------

    def record_step(
        self,
        step: int,
        crystals: Sequence[SampledCrystal],
        rewards: Sequence[Reward],
        metrics: Mapping[str, Any],
        *,
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """Write all that a step sampled and earned, in one transaction.

        Args:
            step: number of the step.
            crystals: B sampled crystals.
            rewards: B rewards, same order.
            metrics: numbers of the step that a repeated run would repeat.
            timings: seconds and the like, which differ between equal runs.

        Raises:
            StorageError: nothing was written.
        """
        if len(crystals) != len(rewards):
            raise ValueError(f"{len(crystals)} crystals but {len(rewards)} rewards")
        with self._transaction("write a step to") as connection:
            connection.executemany(
                "INSERT INTO crystals VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (step, i, c.digest, c.space_group, c.formula, finite(c.log_prob), c.tokens)
                    for i, c in enumerate(crystals)
                ],
            )
            connection.executemany(
                "INSERT INTO rewards VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (step, i, r.reward, r.bonus, r.status.value, r.reason)
                    for i, r in enumerate(rewards)
                ],
            )
            connection.execute(
                "INSERT INTO steps VALUES (?, ?, ?)",
                (step, compact_json(metrics), compact_json(timings or {})),
            )

    def rollback(self, step: int) -> None:
        """Forget all steps after ``step``, but not what they computed.

        Their evaluations stay as values that nobody is charged for yet.
        """
        with self._transaction("roll back") as connection:
            connection.execute("DELETE FROM crystals WHERE step > ?", (step,))
            connection.execute("DELETE FROM rewards WHERE step > ?", (step,))
            connection.execute("DELETE FROM steps WHERE step > ?", (step,))
            connection.execute("UPDATE evaluations SET step = NULL WHERE step > ?", (step,))

    def last_step(self) -> int | None:
        """Number of the last recorded step, None if there is none."""
        number = self._rows("SELECT MAX(step) FROM steps")[0][0]
        return None if number is None else int(number)

    # -- reading -------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary for each step, in order: ``step``, metrics, timings."""
        rows = self._rows("SELECT step, metrics, timings FROM steps ORDER BY step")
        return [{"step": step, **json.loads(m), **json.loads(t)} for step, m, t in rows]

    def crystals(
        self, *properties: str, first_step: int | None = None, last_step: int | None = None
    ) -> dict[str, np.ndarray]:
        """Columns over all sampled crystals, in the order of sampling.

        Args:
            properties: names of properties whose values to join.
            first_step: leave out earlier steps.
            last_step: leave out later steps.

        Returns:
            ``step``, ``position``, ``digest``, ``space_group``, ``formula``, ``log_prob``,
            ``reward``, ``bonus``, ``status``, ``reason``, each (N,); for each property ``name``
            (N,) float64 with NaN where there is no value, ``name/status`` and ``name/reason``,
            empty where it was not evaluated.
        """
        low = -(2**62) if first_step is None else first_step
        high = 2**62 if last_step is None else last_step
        rows = self._rows(
            "SELECT c.step, c.position, c.digest, c.space_group, c.formula, c.log_prob, "
            "r.reward, r.bonus, r.status, r.reason FROM crystals c "
            "JOIN rewards r ON r.step = c.step AND r.position = c.position "
            "WHERE c.step BETWEEN ? AND ? ORDER BY c.step, c.position",
            (low, high),
        )
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(_COLUMNS)
        table: dict[str, np.ndarray] = {
            name: np.array(column, dtype=dtype)  # None becomes NaN in a column of floats
            for (name, dtype), column in zip(_COLUMNS.items(), columns, strict=True)
        }
        for name in properties:
            known = {
                digest: entry
                for digest, *entry in self._rows(
                    "SELECT digest, value, status, reason FROM evaluations WHERE property = "
                    "(SELECT MAX(id) FROM properties WHERE name = ?)",
                    (name,),
                )
            }
            found = [known.get(digest, (None, "", "")) for digest in table["digest"]]
            table[name] = np.array([entry[0] for entry in found], dtype=np.float64)
            table[f"{name}/status"] = np.array([entry[1] for entry in found], dtype=object)
            table[f"{name}/reason"] = np.array([entry[2] for entry in found], dtype=object)
        return table

    def tokens(self, digests: Sequence[str]) -> list[bytes]:
        """Packed tokens of sampled crystals, in the order asked for.

        Raises:
            KeyError: a digest was never sampled.
        """
        found = dict(
            self._rows(
                "SELECT digest, tokens FROM crystals "
                "WHERE digest IN (SELECT value FROM json_each(?))",
                (json.dumps(list(digests)),),
            )
        )
        return [found[digest] for digest in digests]

    def content_digest(self) -> str:
        """sha256 of all that a repeated run must repeat: everything but times and row order."""
        evaluations = (
            "SELECT key, name, unit, digest, step, value, status, reason, extra FROM evaluations "
            "JOIN properties ON id = property WHERE step IS NOT NULL ORDER BY key, digest"
        )
        queries = (
            evaluations,
            "SELECT * FROM crystals ORDER BY step, position",
            "SELECT * FROM rewards ORDER BY step, position",
            "SELECT step, metrics FROM steps ORDER BY step",
        )
        total = hashlib.sha256()
        with self._lock, self._translated("read"):
            for query in queries:
                for row in self._connection.execute(query):
                    total.update(repr(row).encode())
        return total.hexdigest()

    def problems(self) -> list[str]:
        """What SQLite's integrity check and the store's own rules find wrong; empty if sound."""
        found = [
            f"integrity: {row[0]}" for row in self._rows("PRAGMA integrity_check") if row[0] != "ok"
        ]
        orphans = self._rows(
            "SELECT COUNT(*) FROM crystals c LEFT JOIN rewards r ON r.step = c.step AND "
            "r.position = c.position WHERE r.step IS NULL"
        )[0][0]
        if orphans:
            found.append(f"{orphans} crystals have no reward")
        return found
