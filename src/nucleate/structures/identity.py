"""Which crystals are the same: the one definition of "unique" and "novel".

Two crystals are the same if they have the same reduced formula and pymatgen's StructureMatcher
with default settings says so (see :mod:`nucleate.structures.matching`, which also fixes the order
of the two). That relation is not transitive, so a set of crystals is read in order, by first fit:
a crystal is a new representative if it fits none of the earlier representatives, and otherwise
belongs to one that it fits. Everything here gives exactly the verdicts of that naive procedure
and is only faster: crystals meet only those of their own formula, are reduced once, and only when
a second crystal of the formula appears; pairs that can't match are left out unseen, and the others
of a whole batch are compared at once; and a crystal equal to the last digit to an earlier one
takes over its verdict.
"""

from __future__ import annotations

import zipfile
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError
from nucleate.structures.formulas import composition_key
from nucleate.structures.matching import Candidates, same_crystals
from nucleate.structures.parsing import Cell, cell_digest, to_cell
from nucleate.structures.reduction import ReducedCell, reduce_cells
from nucleate.structures.writing import replacing

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.structures.datasets import TokenDataset

FORMAT = 1


def as_cells(structures: Iterable[Structure | Cell | None]) -> list[Cell | None]:
    """Arrays of crystals, each None where there is none or it is disordered.

    Everything here takes structures; whoever asks several things of them converts them once.
    """
    cells: list[Cell | None] = []
    for item in structures:
        if item is None or isinstance(item, tuple):
            cells.append(item)
            continue
        try:
            cells.append(to_cell(item))
        except ValueError:
            cells.append(None)
    return cells


_recent: OrderedDict[bytes, ReducedCell | None] = OrderedDict()
RECENT = 20_000  # reduced cells kept, so that a crystal is reduced once for unique and novel
FIRST_PARTNERS = 4  # crystals of its formula that a crystal meets before it meets four times more


def _reduced(cells: Mapping[bytes, Cell]) -> dict[bytes, ReducedCell | None]:
    """:func:`~nucleate.structures.reduction.reduce_cells` by digest, the last ones remembered."""
    missing = {digest: cell for digest, cell in cells.items() if digest not in _recent}
    _recent.update(zip(missing, reduce_cells(list(missing.values())), strict=True))
    found = {digest: _recent[digest] for digest in cells}
    while len(_recent) > RECENT:
        _recent.popitem(last=False)
    return found


@dataclass(slots=True)
class _Family:
    """The representatives of one reduced formula, in order; each is reduced at its first use."""

    cells: list[Cell] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    digests: dict[bytes, int] = field(default_factory=dict)  # of all seen, to labels
    candidates: Candidates = field(default_factory=Candidates)
    rows: list[int] = field(default_factory=list)  # of the candidates
    n_indexed: int = 0

    def append(self, cell: Cell, label: int) -> None:
        """One more representative."""
        self.cells.append(cell)
        self.labels.append(label)

    def unindexed(self) -> dict[bytes, Cell]:
        """Representatives that are not reduced yet, by digest."""
        return dict(zip(self._digests(), self.cells[self.n_indexed :], strict=True))

    def index(self, cells: Mapping[bytes, ReducedCell | None]) -> None:
        """Take in the reduced cells of what is :meth:`unindexed`."""
        for row, digest in enumerate(self._digests(), self.n_indexed):
            self.digests.setdefault(digest, self.labels[row])
            if (reduced := cells[digest]) is not None:
                self.candidates.append(reduced)
                self.rows.append(row)
        self.n_indexed = len(self.cells)

    def _digests(self) -> list[bytes]:
        return [cell_digest(cell) for cell in self.cells[self.n_indexed :]]


@dataclass(slots=True)
class _Query:
    """A crystal that meets the representatives of its formula from ``start`` on."""

    family: _Family
    cell: Cell
    start: int = 0


def _first_fits(queries: Sequence[_Query]) -> list[int]:
    """Label of the first representative that each crystal fits, -1 if it fits none."""
    digests = [cell_digest(query.cell) for query in queries]
    families = {id(query.family): query.family for query in queries}
    wanted = {d: c for family in families.values() for d, c in family.unindexed().items()}
    wanted |= {
        digest: query.cell
        for digest, query in zip(digests, queries, strict=True)
        if digest not in query.family.digests
    }
    reduced = _reduced(wanted)
    for family in families.values():
        family.index(reduced)
    labels = [q.family.digests.get(d, -1) for d, q in zip(digests, queries, strict=True)]
    partners: dict[int, tuple[ReducedCell, list[int]]] = {}
    for i, query in enumerate(queries):
        new = reduced[digests[i]] if labels[i] < 0 else None
        if new is not None:
            start = bisect_left(query.family.rows, query.start)
            rows = query.family.candidates.may_match(new, start).tolist()
            if rows:
                partners[i] = new, rows
    begin, width = 0, FIRST_PARTNERS
    while partners:
        met = [(i, row) for i, (_, rows) in partners.items() for row in rows[begin : begin + width]]
        same = same_crystals(
            [(queries[i].family.candidates.cells[row], partners[i][0]) for i, row in met]
        )
        for (i, row), fits in zip(met, same.tolist(), strict=True):
            if fits and labels[i] < 0:
                family = queries[i].family
                labels[i] = family.digests[digests[i]] = family.labels[family.rows[row]]
        begin, width = begin + width, 4 * width
        partners = {i: p for i, p in partners.items() if labels[i] < 0 and len(p[1]) > begin}
    return labels


class UniqueFilter:
    """First fit over everything it is shown, batch after batch, for a whole run.

    Attributes:
        n_seen: crystals shown so far, those without a structure included.
    """

    def __init__(self) -> None:
        self.n_seen = 0
        self._families: defaultdict[int, _Family] = defaultdict(_Family)

    def add(self, structures: Iterable[Structure | Cell | None]) -> tuple[np.ndarray, np.ndarray]:
        """Show the next crystals.

        Args:
            structures: B crystals as structures or (row vectors in Å, atomic numbers, fractional
                coordinates); None where there is none.

        Returns:
            first: (B,) bool, True for the first crystal of its kind ever shown.
            group: (B,) int64, running number (from 0, over all batches) of the first representative
                that the crystal fits; its own where ``first``; -1 where there is no crystal.
        """
        cells = as_cells(structures)
        first = np.zeros(len(cells), bool)
        group = np.full(len(cells), -1, np.int64)
        waiting: dict[int, _Query] = {}
        for row, cell in enumerate(cells):
            if cell is not None and len(cell[1]):
                family = self._families[composition_key(cell[1])]
                if family.cells:
                    waiting[row] = _Query(family, cell)
                else:
                    first[row] = True
                    family.append(cell, self.n_seen + row)
        while waiting:
            labels = _first_fits(list(waiting.values()))
            left: dict[int, _Query] = {}
            grown: set[int] = set()
            for (row, query), label in zip(waiting.items(), labels, strict=True):
                family = query.family
                if label >= 0:
                    group[row] = label
                elif id(family) in grown:  # an earlier one is new, which this one has yet to meet
                    left[row] = _Query(family, query.cell, len(family.cells) - 1)
                else:
                    first[row] = True
                    family.append(query.cell, self.n_seen + row)
                    grown.add(id(family))
            waiting = left
        group[first] = self.n_seen + np.flatnonzero(first)
        self.n_seen += len(cells)
        return first, group

    def __len__(self) -> int:
        """Number of different crystals seen."""
        return sum(len(family.cells) for family in self._families.values())

    def state(self, seen: int | None = None) -> dict[str, np.ndarray]:
        """Everything needed to go on later with the same verdicts, as plain arrays.

        Args:
            seen: the state after so many crystals; by default after all that were shown.
        """
        seen = self.n_seen if seen is None else seen
        kept = [
            (label, cell)
            for family in self._families.values()
            for label, cell in zip(family.labels, family.cells, strict=True)
            if label < seen
        ]
        kept.sort(key=lambda item: item[0])
        packed = _pack([cell for _, cell in kept])
        packed["label"] = np.array([label for label, _ in kept], dtype=np.int64)
        packed["n_seen"] = np.array(seen, dtype=np.int64)
        return packed

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray]) -> UniqueFilter:
        """The filter that :meth:`state` described."""
        result = cls()
        result.n_seen = np.asarray(state["n_seen"]).item()  # a checkpoint gives it one dimension
        for label, cell in zip(state["label"].tolist(), _unpack(state), strict=True):
            result._families[composition_key(cell[1])].append(cell, label)
        return result


def unique(structures: Iterable[Structure | Cell | None]) -> tuple[np.ndarray, np.ndarray]:
    """First of its kind and representative of each of B crystals; see :meth:`UniqueFilter.add`."""
    return UniqueFilter().add(structures)


class ReferenceSet:
    """Known crystals, such as a training set, indexed by reduced formula.

    Only the hash of each formula is kept at hand; crystals are read when one of their formula is
    asked for, and the most recent formulas stay in memory.

    Args:
        keys: (N,) uint64 from :func:`~nucleate.structures.formulas.composition_key`, 0 for a row
            without a crystal.
        fetch: gives the cells of an array of row numbers.
        ids: (N,) names of the crystals; row numbers without it.
        cached: formulas kept in memory.

    Attributes:
        source: how many crystals, and where they are from; printed with every result.
    """

    def __init__(
        self,
        keys: np.ndarray,
        fetch: Callable[[np.ndarray], list[Cell | None]],
        ids: Sequence[str] | None = None,
        cached: int = 20_000,
    ) -> None:
        keys = np.asarray(keys, dtype=np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._order = self._order[keys[self._order] != 0]
        self._keys = keys[self._order]
        self._fetch = fetch
        self._ids = ids
        self._cached = cached
        self.source = f"{len(self._keys):,} crystals"
        self._families: OrderedDict[int, _Family] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> ReferenceSet:
        """Prepared data, what :meth:`save` wrote, or any files of crystals.

        Raises:
            InputError: there is no crystal.
        """
        from nucleate.structures.datasets import TokenDataset

        path = Path(path)
        if (path / "meta.json").is_file():
            return cls.from_dataset(TokenDataset.open(path))
        return cls.load(path) if path.suffix == ".npz" else cls.from_file(path)

    @classmethod
    def from_structures(
        cls, structures: Iterable[Structure | Cell | None], ids: Sequence[str] | None = None
    ) -> ReferenceSet:
        """Index of crystals in memory, exactly as they are given."""
        return cls._packed(_pack(as_cells(structures)), ids)

    @classmethod
    def from_dataset(cls, dataset: TokenDataset) -> ReferenceSet:
        """Index of prepared tokens; the crystals are those that the tokens decode to."""
        from nucleate.structures.wyckoff import decode_arrays

        def fetch(rows: np.ndarray) -> list[Cell | None]:
            return decode_arrays(dataset.rows(rows))[0]

        result = cls(dataset.columns["formula_key"], fetch, dataset.ids)
        result.source = f"{len(dataset):,} crystals of {dataset.path.name}"
        return result

    @classmethod
    def from_file(cls, source: str | Path) -> ReferenceSet:
        """Index of every usable crystal of a file, directory or glob that nucleate reads."""
        from nucleate.structures.io import iter_raw
        from nucleate.structures.parsing import parse_cell

        cells, ids = [], []
        for raw in iter_raw(source):
            cell, _ = parse_cell(raw)
            if cell is not None:
                cells.append(cell)
                ids.append(raw.id)
        if not cells:
            raise InputError(f"{source} holds no usable crystal.", "", "Check the file.")
        result = cls._packed(_pack(cells), ids)
        result.source = f"{len(cells):,} crystals of {Path(source).name}"
        return result

    @classmethod
    def _packed(cls, packed: Mapping[str, np.ndarray], ids: Sequence[str] | None) -> ReferenceSet:
        offsets, numbers = packed["offsets"], packed["numbers"]
        spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        keys = [composition_key(numbers[a:b]) if b > a else 0 for a, b in spans]

        def fetch(rows: np.ndarray) -> list[Cell | None]:
            return [_unpack_row(packed, row) for row in rows.tolist()]

        result = cls(np.array(keys, dtype=np.uint64), fetch, ids)
        result._arrays = packed
        return result

    _arrays: Mapping[str, np.ndarray] | None = None

    def save(self, path: str | Path) -> None:
        """The set as one compressed file of plain arrays; for sets made of structures or files.

        Raises:
            InputError: the set is an index of prepared tokens, which are on disk already.
        """
        if self._arrays is None:
            raise InputError(
                f"{path}: this reference set is an index of prepared tokens.",
                "They are on disk already.",
                "Open it again with ReferenceSet.from_dataset.",
            )
        arrays: dict[str, Any] = dict(self._arrays)
        arrays["ids"] = np.array(self._ids if self._ids is not None else [], dtype=np.str_)
        arrays["format"] = np.array(FORMAT)
        with replacing(path, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> ReferenceSet:
        """The set that :meth:`save` wrote.

        Raises:
            InputError: the file is absent, truncated or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if int(arrays.pop("format")) != FORMAT:
                raise ValueError("another format version")
            ids = arrays.pop("ids").tolist() or None
            return cls._packed(arrays, ids)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is no reference set of crystals.",
                str(error),
                "Make it again from the crystals that it should hold.",
            ) from error

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self._keys)

    @property
    def n_formulas(self) -> int:
        """Number of different reduced formulas."""
        return len(np.unique(self._keys))

    def known_formula(self, structures: Iterable[Structure | Cell | None]) -> np.ndarray:
        """(B,) bool, True where a crystal of the same reduced formula is in the set."""
        return self._present(as_cells(structures))

    def is_known(
        self, structures: Iterable[Structure | Cell | None]
    ) -> tuple[np.ndarray, list[str | None]]:
        """Which crystals are in the set.

        Args:
            structures: B crystals; None (nothing there) is not known.

        Returns:
            known: (B,) bool.
            match: B names of a crystal of the set that each is the same as; None where not known.
        """
        cells = as_cells(structures)
        known = np.zeros(len(cells), bool)
        match: list[str | None] = [None] * len(cells)
        queries: dict[int, _Query] = {}
        for row in np.flatnonzero(self._present(cells)).tolist():
            cell = cells[row]
            if cell is not None and (family := self._family(composition_key(cell[1]))) is not None:
                queries[row] = _Query(family, cell)
        for row, label in zip(queries, _first_fits(list(queries.values())), strict=True):
            if label >= 0:
                known[row] = True
                match[row] = str(label) if self._ids is None else str(self._ids[label])
        return known, match

    def _present(self, cells: Sequence[Cell | None]) -> np.ndarray:
        """(B,) bool, whether there are crystals of the same formulas."""
        keys = np.array([0 if c is None else composition_key(c[1]) for c in cells], np.uint64)
        if not len(self._keys):
            return np.zeros(len(cells), bool)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.asarray(self._keys[at] == keys)

    def _span(self, key: int) -> slice | None:
        """Where the crystals of a formula are in the sorted keys."""
        wanted = np.uint64(key)
        start = int(np.searchsorted(self._keys, wanted, side="left"))
        stop = int(np.searchsorted(self._keys, wanted, side="right"))
        return slice(start, stop) if stop > start else None

    def _family(self, key: int) -> _Family | None:
        """The crystals of a formula, from memory or read now."""
        if key in self._families:
            self._families.move_to_end(key)
            return self._families[key]
        span = self._span(key)
        if span is None:
            return None
        family = _Family()
        rows = self._order[span]
        for row, cell in zip(rows.tolist(), self._fetch(rows), strict=True):
            if cell is not None:
                family.append(cell, row)
        self._families[key] = family
        if len(self._families) > self._cached:
            self._families.popitem(last=False)
        return family


# ------------------------------------------------------------------------------- packing


def _pack(cells: Sequence[Cell | None]) -> dict[str, np.ndarray]:
    """N cells as flat arrays: offsets (N + 1,), lattice (N, 3, 3), numbers, frac_coords."""
    sizes = [0 if cell is None else len(cell[1]) for cell in cells]
    present = [cell for cell in cells if cell is not None and len(cell[1])]
    lattice = np.zeros((len(cells), 3, 3))
    for row, cell in enumerate(cells):
        if cell is not None:
            lattice[row] = cell[0]
    return {
        "offsets": np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        "lattice": lattice,
        "numbers": np.concatenate([np.zeros(0, np.uint8)] + [c[1] for c in present]).astype(
            np.uint8
        ),
        "frac_coords": np.concatenate([np.zeros((0, 3))] + [c[2] for c in present]),
    }


def _unpack_row(packed: Mapping[str, np.ndarray], row: int) -> Cell | None:
    """Cell ``row`` of packed arrays; None where there is no crystal."""
    start, stop = int(packed["offsets"][row]), int(packed["offsets"][row + 1])
    if stop == start:
        return None
    return (
        np.array(packed["lattice"][row], dtype=float),
        np.array(packed["numbers"][start:stop], dtype=np.int64),
        np.array(packed["frac_coords"][start:stop], dtype=float),
    )


def _unpack(packed: Mapping[str, np.ndarray]) -> list[Cell]:
    """All cells of packed arrays that hold no gap."""
    cells = (_unpack_row(packed, row) for row in range(len(packed["lattice"])))
    return [cell for cell in cells if cell is not None]
