"""What all runs of a project folder have computed: one file, so that nothing is computed twice.

An evaluation is keyed by (:func:`crystal_digest`, key of the property), and the key holds the
property's settings and the hashes of its weights: what would give another value has another key.
The digest is that of the very crystal that the property saw, drawn, relaxed or read from a file, so
that runs and scored files share what they compute.
Several runs, on this machine or on others that see the folder, read and write the file at the same
time; a writer waits for the one before it.

What is kept are values, and verdicts that follow from the crystal (``unsupported``, ``invalid``).
An evaluation that failed, took too long or crashed may do better another time: it counts in the
run that met it, and other runs try anew. What a relaxation led to is kept beside its evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nucleate.protocols import Status
from nucleate.store.cells import CellDatabase
from nucleate.store.experience import Evaluation
from nucleate.store.filesystem import storage_errors
from nucleate.store.values import compact_json, finite, number, numbers
from nucleate.structures.parsing import Cell

if TYPE_CHECKING:
    from pymatgen.core import Structure

CACHE = "evaluations.sqlite"
STEPS = 1e5
"""In 1 Å and in 1 of a fractional coordinate: what is nearer counts as equal, so that digests
survive files of eight digits."""
KEPT = frozenset({Status.OK, Status.UNSUPPORTED, Status.INVALID})

_SCHEMA = """
CREATE TABLE properties (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE evaluations (
    property INTEGER NOT NULL REFERENCES properties (id), digest TEXT NOT NULL, value REAL,
    status TEXT NOT NULL, reason TEXT NOT NULL, extra TEXT NOT NULL, seconds REAL NOT NULL,
    source TEXT NOT NULL, PRIMARY KEY (property, digest)) WITHOUT ROWID;
"""


def crystal_digest(structure: Structure) -> str:
    """Hash of all that a property may read: cell, sites in order, what is told of them.

    Another cell of the same crystal has another digest, since a property may count its atoms, and
    so has a turned one, since a tensor has components.
    """
    with np.errstate(invalid="ignore"):  # of numbers that are not finite
        matrix = np.rint(structure.lattice.matrix * STEPS).astype("<i8")
        coords = np.rint(structure.frac_coords * STEPS).astype("<i8") % int(STEPS)
    sites = [site.species_string for site in structure]
    told = [sites, structure.site_properties, structure.properties, structure.charge]
    text = json.dumps(told, sort_keys=True, default=str)
    content = matrix.tobytes() + coords.tobytes() + text.encode()
    return hashlib.sha256(content).hexdigest()[:32]


class EvaluationCache(CellDatabase):
    """Evaluations by crystal and property, shared by runs.

    Args:
        path: SQLite file; made with its folder if absent.
        source: who computes what :meth:`keep` is given, such as a run.

    Raises:
        StorageError: the file can't be made or written.
        CheckpointError: it is no cache of this version.

    Example:
        >>> with EvaluationCache(":memory:", "first run") as cache:
        ...     cache.keep("density/1", {"a": Evaluation(5.2)})
        ...     cache.lookup(["a", "b"], "density/1")["a"].value
        5.2
    """

    kind, version, schema = "cache", 1, _SCHEMA
    remedy = "Move it away or name another one (output.cache); runs hold their own evaluations."

    def __init__(self, path: str | Path, source: str = "") -> None:
        self.source = source
        if str(path) != ":memory:":
            with storage_errors(Path(path).parent, "make the folder"):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path)

    def lookup(self, digests: Iterable[str], key: str) -> dict[str, Evaluation]:
        """Known evaluations of a property, by digest; the source is empty where it is one's own."""
        rows = self._rows(
            "SELECT digest, value, status, reason, seconds, extra, source FROM evaluations "
            "WHERE property = (SELECT id FROM properties WHERE key = ?) "
            "AND digest IN (SELECT value FROM json_each(?))",
            (key, json.dumps(list(digests))),
        )
        return {
            digest: Evaluation(
                number(value),
                Status(status),
                reason,
                seconds,
                numbers(extra),
                "" if source == self.source else source,
            )
            for digest, value, status, reason, seconds, extra, source in rows
        }

    def keep(
        self,
        key: str,
        evaluations: Mapping[str, Evaluation],
        cells: Mapping[str, Cell] | None = None,
    ) -> None:
        """Write new evaluations, in one transaction that is on the disk when this returns.

        A digest already known keeps its old value, and what another time may mend is left out.

        Args:
            key: what they are kept under.
            evaluations: by digest.
            cells: what crystals became in the measurement, by digest, such as relaxed ones.
        """
        rows = [
            (
                digest,
                finite(entry.value),
                entry.status.value,
                entry.reason,
                compact_json(entry.extra),
                entry.seconds,
                entry.source or self.source,
            )
            for digest, entry in evaluations.items()
            if entry.status in KEPT
        ]
        if not rows:
            return
        with self._transaction("write an evaluation to") as connection:
            connection.execute("INSERT OR IGNORE INTO properties (key) VALUES (?)", (key,))
            (identity,) = connection.execute(
                "SELECT id FROM properties WHERE key = ?", (key,)
            ).fetchone()
            connection.executemany(
                "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(identity, *row) for row in rows],
            )
            self._keep_cells(connection, identity, cells or {})
