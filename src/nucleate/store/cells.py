"""Cells that measurements led to, beside the evaluations of a database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping

from nucleate.store.database import Database
from nucleate.store.packing import pack_cell, unpack_cell
from nucleate.structures.parsing import Cell

_CELLS = """
CREATE TABLE IF NOT EXISTS cells (
    property INTEGER NOT NULL REFERENCES properties (id), digest TEXT NOT NULL,
    cell BLOB NOT NULL, PRIMARY KEY (property, digest)) WITHOUT ROWID
"""  # made when the first cell is kept: most runs relax nothing


class CellDatabase(Database):
    """A database of evaluations, with a table ``properties`` of keys, that keeps cells too.

    Args and errors are those of :class:`~nucleate.store.database.Database`.
    """

    def cells(self, key: str, digests: Iterable[str]) -> dict[str, Cell]:
        """What crystals became in a measurement, by digest; absent where nothing was kept."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'cells'"):
            return {}
        rows = self._rows(
            "SELECT digest, cell FROM cells JOIN properties ON id = property WHERE key = ? "
            "AND digest IN (SELECT value FROM json_each(?))",
            (key, json.dumps(list(digests))),
        )
        return {digest: unpack_cell(cell) for digest, cell in rows}

    @staticmethod
    def _keep_cells(
        connection: sqlite3.Connection, identity: int, cells: Mapping[str, Cell]
    ) -> None:
        """Write cells of the property with this id, in the caller's transaction."""
        if not cells:
            return
        connection.execute(_CELLS)
        connection.executemany(
            "INSERT OR IGNORE INTO cells VALUES (?, ?, ?)",
            [(identity, digest, pack_cell(cell)) for digest, cell in cells.items()],
        )
