"""Tokens of one crystal, and cells, as compact bytes: fixed little-endian numbers, no code.

Layout: version (uint8), number of sites n (uint8), space group (int16), Wyckoff letters (n int8),
atomic numbers (n uint8), fractional coordinates (3n float32), lattice (6 float32): 28 + 14 n
bytes.

A cell of n atoms, such as a relaxed one, is its lattice (9 float64, row vectors in Å), fractional
coordinates (3n float64) and atomic numbers (n uint8): 72 + 25 n bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nucleate.errors import CheckpointError
from nucleate.structures.parsing import Cell
from nucleate.structures.wyckoff import WyckoffBatch

_VERSION = 1


def pack_batch(batch: WyckoffBatch) -> list[bytes]:
    """Bytes of each crystal, B entries; padding is left out."""
    packed = []
    for i, sites in enumerate((np.asarray(batch.wyckoff) > 0).sum(axis=1)):
        n = int(sites)
        packed.append(
            bytes((_VERSION, n))
            + np.asarray(batch.space_group[i], "<i2").tobytes()
            + np.asarray(batch.wyckoff[i, :n], "i1").tobytes()
            + np.asarray(batch.species[i, :n], "u1").tobytes()
            + np.asarray(batch.frac_coords[i, :n], "<f4").tobytes()
            + np.asarray(batch.lattice[i], "<f4").tobytes()
        )
    return packed


def unpack_batch(packed: Sequence[bytes]) -> WyckoffBatch:
    """The batch again, padded to its longest row.

    Raises:
        CheckpointError: bytes of another version or length.
    """
    for i, data in enumerate(packed):
        if len(data) < 2 or data[0] != _VERSION or len(data) != 28 + 14 * data[1]:
            raise CheckpointError(
                f"Stored crystal {i} can't be read.",
                f"Its {len(data)} bytes are no tokens of version {_VERSION}.",
                "Open the run with the release that wrote it.",
            )
    size = max((data[1] for data in packed), default=0)
    rows = len(packed)
    space_group = np.zeros(rows, np.int16)
    wyckoff = np.zeros((rows, size), np.int8)
    species = np.zeros((rows, size), np.int8)
    frac_coords = np.zeros((rows, size, 3), np.float32)
    lattice = np.zeros((rows, 6), np.float32)
    for i, data in enumerate(packed):
        n = data[1]
        space_group[i] = np.frombuffer(data, "<i2", 1, 2)[0]
        wyckoff[i, :n] = np.frombuffer(data, "i1", n, 4)
        species[i, :n] = np.frombuffer(data, "u1", n, 4 + n)
        frac_coords[i, :n] = np.frombuffer(data, "<f4", 3 * n, 4 + 2 * n).reshape(n, 3)
        lattice[i] = np.frombuffer(data, "<f4", 6, 4 + 14 * n)
    return WyckoffBatch(
        space_group=space_group,
        wyckoff=wyckoff,
        species=species,
        frac_coords=frac_coords,
        lattice=lattice,
    )


def pack_cell(cell: Cell) -> bytes:
    """Bytes of a cell, exact to the last digit."""
    lattice, numbers, frac_coords = cell
    return (
        np.asarray(lattice, "<f8").tobytes()
        + np.asarray(frac_coords, "<f8").tobytes()
        + np.asarray(numbers, "u1").tobytes()
    )


def unpack_cell(data: bytes) -> Cell:
    """The arrays again.

    Raises:
        CheckpointError: bytes of no such length.
    """
    n, rest = divmod(len(data) - 72, 25)
    if rest or n < 1:
        raise CheckpointError(f"A stored cell can't be read: it has {len(data)} bytes.")
    numbers = np.frombuffer(data, "u1", n, 72 + 24 * n).astype(np.int64)
    frac_coords = np.frombuffer(data, "<f8", 3 * n, 72).reshape(n, 3).copy()
    return np.frombuffer(data, "<f8", 9).reshape(3, 3).copy(), numbers, frac_coords
