"""Crystals prepared for training: Wyckoff tokens in a directory of memory-mapped arrays.

A prepared directory holds flat arrays over crystals (space group, lattice, labels) and over sites
(letter, species, coordinates), joined by offsets, each a plain ``.npy`` file; names and formulas
as UTF-8 bytes with offsets; ``skipped.jsonl`` with every crystal that was left out and why; and
``meta.json`` with counts, settings, versions and the hash of every source file. Nothing of it is
read before it is asked for, so that 10⁷ crystals train in little memory.

Writing and reading live apart: :mod:`nucleate.structures.preparation` makes such a directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nucleate.errors import InputError
from nucleate.structures.wyckoff import WyckoffBatch

FORMAT = 1
N_SPACE_GROUPS = 230
CRYSTAL_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "space_group": ("<i2", ()),
    "lattice": ("<f4", (6,)),
    "n_atoms": ("<i2", ()),
    "vol_per_atom": ("<f4", ()),
    "formula_key": ("<u8", ()),
}  # dtype and shape after the first axis, one row a crystal
SITE_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "wyckoff": ("<i1", ()),
    "species": ("<i1", ()),
    "frac_coords": ("<f4", (3,)),
}  # the same, one row a site


class TextColumn(Sequence[str]):
    """N strings on disk, read one at a time.

    Args:
        offsets: (N + 1,) int64, where each string begins in ``content``.
        content: uint8, UTF-8.
    """

    def __init__(self, offsets: np.ndarray, content: np.ndarray) -> None:
        self._offsets, self._content = offsets, content

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (slice, np.ndarray, list)):
            return [self[int(i)] for i in np.arange(len(self))[index]]
        row = range(len(self))[index]
        return self._content[self._offsets[row] : self._offsets[row + 1]].tobytes().decode()


@dataclass(frozen=True)
class TokenDataset:
    """Prepared crystals, opened read-only.

    Attributes:
        path: the directory.
        meta: what ``meta.json`` holds.
        offsets: (N + 1,) int64, where the sites of each crystal begin.
        columns: memory-mapped arrays by name, (N, ...): space_group int16, lattice (N, 6)
            float32 in Å and degrees, n_atoms int16 in the conventional cell, vol_per_atom
            float32 in Å³, formula_key uint64, and each label (float32, NaN where unknown).
        sites: memory-mapped arrays over all sites: wyckoff int8, species int8, frac_coords
            float32 (T, 3).
        ids: N names.
        formulas: N reduced formulas.
    """

    path: Path
    meta: Mapping[str, Any]
    offsets: np.ndarray
    columns: Mapping[str, np.ndarray]
    sites: Mapping[str, np.ndarray]
    ids: TextColumn
    formulas: TextColumn

    @classmethod
    def open(cls, path: str | Path) -> TokenDataset:
        """Open a prepared directory.

        Raises:
            InputError: no such directory, another format, or a missing or truncated file.
        """
        path = Path(path)
        meta = _read_meta(path)
        n_crystals, n_sites = int(meta["n_crystals"]), int(meta["n_sites"])
        columns = {
            name: _map(path, name, n_crystals, shape) for name, (_, shape) in CRYSTAL_ARRAYS.items()
        }
        columns |= {name: _map(path, name, n_crystals, ()) for name in meta["labels"]}
        sites = {name: _map(path, name, n_sites, shape) for name, (_, shape) in SITE_ARRAYS.items()}
        offsets = _map(path, "offsets", n_crystals + 1, ())
        if n_crystals and int(offsets[-1]) != n_sites:
            raise _damaged(path / "offsets.npy", f"ends at {offsets[-1]} of {n_sites} sites")
        texts = {}
        for name in ("id", "formula"):
            where = _map(path, f"{name}_offsets", n_crystals + 1, ())
            texts[name] = TextColumn(where, _map(path, name, int(where[-1]), ()))
        return cls(path, meta, offsets, columns, sites, texts["id"], texts["formula"])

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.offsets) - 1

    @property
    def space_group(self) -> np.ndarray:
        """(N,) int16, 1..230, memory-mapped."""
        return self.columns["space_group"]

    @property
    def n_sites(self) -> np.ndarray:
        """(N,) int64, number of orbits of each crystal."""
        return np.diff(self.offsets)

    @property
    def digest(self) -> str:
        """sha256 of all tokens, by which a checkpoint names its data."""
        return str(self.meta["sha256"])

    def rows(self, indices: np.ndarray | Sequence[int] | slice) -> WyckoffBatch:
        """Tokens of some crystals, in the order asked for, padded to the longest of them.

        Args:
            indices: row numbers (B,), a mask (N,), or a slice.
        """
        if isinstance(indices, slice):
            rows = np.arange(len(self))[indices]
        else:
            rows = np.asarray(indices)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        start = self.offsets[rows]
        count = self.offsets[rows + 1] - start
        batch = WyckoffBatch.empty(len(rows), int(count.max(initial=0)))
        row, slot = np.nonzero(np.arange(batch.wyckoff.shape[1]) < count[:, None])
        source = start[row] + slot
        for name, array in self.sites.items():
            getattr(batch, name)[row, slot] = array[source]
        batch.space_group[:] = self.columns["space_group"][rows]
        batch.lattice[:] = self.columns["lattice"][rows]
        return batch

    def batches(
        self,
        batch_size: int,
        rng: np.random.Generator,
        indices: np.ndarray | None = None,
        drop_last: bool = False,
    ) -> Iterator[np.ndarray]:
        """One epoch of row numbers, every row once, in batches of equal or nearly equal length.

        Rows are shuffled, put in order of their number of sites (equal numbers stay shuffled),
        cut into batches, and the batches shuffled: only where a batch straddles two lengths is
        there padding at all. The order depends on ``rng`` alone.

        Args:
            batch_size: rows in a batch.
            rng: source of the shuffles.
            indices: (M,) the rows to go through; all by default.
            drop_last: leave out the one batch that is not full.

        Yields:
            (batch_size,) int64 row numbers; one batch of the epoch may be shorter.
        """
        rows = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        rows = rng.permutation(rows)
        rows = rows[np.argsort(self.n_sites[rows], kind="stable")]
        n_full, rest = divmod(len(rows), batch_size)
        sizes = np.full(n_full, batch_size)
        if rest and not drop_last:
            sizes = np.insert(sizes, int(rng.integers(n_full + 1)), rest)
        ends = np.cumsum(sizes)
        for batch in rng.permutation(len(sizes)).tolist():
            yield rows[ends[batch] - sizes[batch] : ends[batch]]

    def space_group_histogram(self, indices: np.ndarray | None = None) -> np.ndarray:
        """(230,) int64, number of crystals in space group ``i + 1``.

        Args:
            indices: rows to count; all by default.
        """
        groups = self.space_group if indices is None else self.space_group[indices]
        return np.bincount(groups, minlength=N_SPACE_GROUPS + 1)[1:]

    def card(self) -> dict[str, Any]:
        """What a model that learnt from these crystals says of them: counts, filters, hashes."""
        histogram = self.space_group_histogram()
        return {
            "space_groups": {int(g) + 1: int(histogram[g]) for g in np.flatnonzero(histogram)},
            "data": self.path.name,
            "data_sha256": self.digest,
            "data_crystals": len(self),
            "data_filters": self.meta.get("filters", {}),
            "data_sources": self.meta.get("sources", []),
            "data_labels": self.label_card(),
        }

    def label_card(self) -> dict[str, Any]:
        """Where the labels come from: counts by label, and the table's hash."""
        return {"counts": self.meta.get("label_counts", {}), "table": self.meta.get("label_table")}


def _damaged(file: Path, why: str) -> InputError:
    return InputError(
        f"{file} is damaged.", why, "Prepare the data again with: nucleate data prepare"
    )


def _read_meta(path: Path) -> dict[str, Any]:
    """``meta.json`` of a prepared directory."""
    file = path / "meta.json"
    if not file.is_file():
        raise InputError(
            f"{path} is no directory of prepared crystals.",
            "It has no meta.json.",
            "Make one with: nucleate data prepare SOURCE DIRECTORY",
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        version = meta["format"]
        needed = {key: meta[key] for key in ("n_crystals", "n_sites", "labels", "sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    if version != FORMAT:
        raise InputError(
            f"{path} has format {version}; this version of nucleate reads {FORMAT}.",
            "",
            "Prepare the data again with: nucleate data prepare",
        )
    return meta | needed


def _map(path: Path, name: str, rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """A memory-mapped array of a known shape."""
    file = path / f"{name}.npy"
    if rows == 0:
        return np.zeros((0, *shape), dtype=_dtype(name))
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(file, str(error)) from error
    if array.shape != (rows, *shape):
        raise _damaged(file, f"It holds {array.shape}, expected {(rows, *shape)}.")
    return array


def _dtype(name: str) -> str:
    """Type of an array by its name; labels are float32."""
    if name.endswith("offsets"):
        return "<i8"
    if name in ("id", "formula"):
        return "|u1"
    return (CRYSTAL_ARRAYS | SITE_ARRAYS).get(name, ("<f4", ()))[0]
