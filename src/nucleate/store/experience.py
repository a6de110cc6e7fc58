"""The record of truth of a run: every sampled crystal, every evaluation, every reward.

One SQLite file, which reports read while the run writes. What makes a resumed run equal to an
uninterrupted one:

* an evaluation is committed before the algorithm sees it, all of a step's evaluations of one
  property in one transaction, so that after a crash a step's evaluations are all there or none,
  and the batches that remain to be computed are the batches of an uninterrupted run;
* an evaluation row names the step that *spent* it. :meth:`ExperienceStore.rollback` keeps the
  values of abandoned steps but takes the step away; the step that asks for such a value again
  claims it and is charged for it, as if it had computed it. So no value is computed twice, and
  counters and rows still equal those of an uninterrupted run;
* a value that another run computed (:mod:`nucleate.store.cache`) is charged in the same way, so
  that a run ends at the same step whatever other runs have left. Where it comes from stands beside
  it, and its seconds are not counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nucleate.protocols import Status
from nucleate.store.cells import CellDatabase
from nucleate.store.values import compact_json, finite, number, numbers
from nucleate.structures.parsing import Cell

COLUMNS: Mapping[str, type] = {
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
"""Of all sampled crystals, beside those of properties."""

_UPGRADE_FROM_1 = """
ALTER TABLE properties ADD COLUMN cost TEXT NOT NULL DEFAULT '';
ALTER TABLE evaluations ADD COLUMN source TEXT NOT NULL DEFAULT '';
DROP INDEX evaluations_by_step;
CREATE INDEX evaluations_by_step ON evaluations (property, step, source, seconds);
"""

_SCHEMA = """
CREATE TABLE properties (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, unit TEXT NOT NULL,
    cost TEXT NOT NULL DEFAULT '');
CREATE TABLE evaluations (
    property INTEGER NOT NULL REFERENCES properties (id), digest TEXT NOT NULL, step INTEGER,
    value REAL, status TEXT NOT NULL, reason TEXT NOT NULL, seconds REAL NOT NULL,
    extra TEXT NOT NULL, source TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (property, digest)) WITHOUT ROWID;
CREATE INDEX evaluations_by_step ON evaluations (property, step, source, seconds);
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
        seconds: what it cost: seconds of worker processes, or of this one where none took part.
            Crystals that were evaluated together share them evenly.
        extra: further numbers measured on the way.
        source: run that computed it, empty for this one.
    """

    value: float
    status: Status = Status.OK
    reason: str = ""
    seconds: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Spending:
    """What a property has cost a run so far.

    Attributes:
        name: of the property.
        cost: its cost class; empty in stores of earlier versions.
        evaluations: distinct crystals that the run asked for, whoever computed them.
        cached: those of them that another run had computed.
        seconds: of evaluation, for those that this run computed; see :class:`Evaluation`.
    """

    name: str
    cost: str
    evaluations: int
    cached: int
    seconds: float


def tally(
    spending: Iterable[Spending], what: Literal["evaluations", "cached", "seconds"]
) -> dict[str, dict[str, float]]:
    """One column of what was spent, summed ``by_property`` and ``by_cost`` class."""
    sums: dict[str, dict[str, float]] = {"by_property": {}, "by_cost": {}}
    for entry in spending:
        for group, label in (("by_property", entry.name), ("by_cost", entry.cost)):
            sums[group][label] = sums[group].get(label, 0) + getattr(entry, what)
    return sums


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


class ExperienceStore(CellDatabase):
    """Crystals, evaluations, rewards and step metrics of one run.

    Args and errors are those of :class:`~nucleate.store.database.Database`.
    """

    kind, version, schema, upgrades = "store", 2, _SCHEMA, {1: _UPGRADE_FROM_1}
    remedy = "Open it with the release that wrote it, or start a new run."

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        # by the last step that counts, until the next write
        self._spending: dict[int | None, tuple[Spending, ...]] = {}
        super().__init__(path, read_only=read_only)

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
        cost: str = "",
        reused: Iterable[str] = (),
        cells: Mapping[str, Cell] | None = None,
    ) -> int:
        """Write a step's evaluations of one property, in one transaction.

        Args:
            step: step that is charged for them; None for none, so that the first step that asks
                for one of them is charged for it.
            key: cache key of the property (name, settings, weights).
            evaluations: newly found, by digest. A digest already known keeps its old value.
            name: name of the property.
            unit: its unit.
            cost: its cost class.
            reused: digests that the step asked for and found by :meth:`lookup`; those that no
                step is charged for (left by a rollback) are charged to this one.
            cells: what crystals became in the measurement, by digest, such as relaxed ones; kept
                where ``evaluations`` is new.

        Returns:
            Number of evaluations charged to this step by this call.
        """
        with self._transaction("write an evaluation to") as connection:
            connection.execute(
                "INSERT INTO properties (key, name, unit, cost) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET cost = excluded.cost",
                (key, name, unit, cost),
            )
            (identity,) = connection.execute(
                "SELECT id FROM properties WHERE key = ?", (key,)
            ).fetchone()
            self._spending.clear()
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                        entry.source,
                    )
                    for digest, entry in evaluations.items()
                ],
            )
            connection.executemany(
                "UPDATE evaluations SET step = ? WHERE property = ? AND digest = ? AND "
                "step IS NULL",
                [(step, identity, digest) for digest in dict.fromkeys(reused)],
            )
            spent = connection.total_changes - before
            self._keep_cells(connection, identity, cells or {})
            return spent

    def evaluations_spent(self, name: str, *, step: int | None = None) -> int:
        """Evaluations of a property charged to the run so far, or to one step.

        Failed evaluations count, and so do those that another run had computed; what the run
        itself had found before does not. Values left over from steps that were rolled back count
        from the moment a step asks for them again.
        """
        if step is None:
            return sum(entry.evaluations for entry in self.spending() if entry.name == name)
        rows = self._rows(
            "SELECT COUNT(*) FROM evaluations JOIN properties ON id = property "
            "WHERE name = ? AND step = ?",
            (name, step),
        )
        return int(rows[0][0])

    def spending(self, through: int | None = None) -> tuple[Spending, ...]:
        """What each property has cost, in the order in which they were first recorded.

        Args:
            through: the last step that counts; by default all that was recorded, which for a
                screen may be a batch ahead of the step that is being finished.
        """
        with self._lock:
            if through not in self._spending or self.read_only:
                new = self._found_version() == self.version
                cost, source = ("cost", "source") if new else ("''", "''")
                rows = self._rows(
                    f"SELECT name, {cost}, COUNT(*), SUM({source} != ''), "  # noqa: S608  constants
                    f"SUM(CASE WHEN {source} = '' THEN seconds ELSE 0 END) "
                    "FROM evaluations JOIN properties ON id = property "
                    "WHERE step <= IFNULL(?, step) GROUP BY property ORDER BY property",
                    (through,),
                )
                self._spending[through] = tuple(Spending(*row) for row in rows)
            return self._spending[through]

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
            self._spending.clear()
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
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
        table: dict[str, np.ndarray] = {
            name: np.array(column, dtype=dtype)  # None becomes NaN in a column of floats
            for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True)
        }
        for name in properties:
            known = {
                digest: entry
                for digest, *entry in self._rows(
                    "SELECT digest, value, status, reason FROM evaluations "
                    "JOIN properties ON id = property "
                    "WHERE name = ? AND step IS NOT NULL ORDER BY property",
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
        found = super().problems()
        orphans = self._rows(
            "SELECT COUNT(*) FROM crystals c LEFT JOIN rewards r ON r.step = c.step AND "
            "r.position = c.position WHERE r.step IS NULL"
        )[0][0]
        if orphans:
            found.append(f"{orphans} crystals have no reward")
        return found
