"""Files of crystals into a prepared directory of tokens (see :mod:`nucleate.structures.datasets`).

The source is streamed: at no time are more than a few thousand crystals in memory. Parsing and the
symmetry search run in worker processes if asked to. The directory appears under its name only when
it is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from nucleate.errors import InputError, NucleateError, StorageError, cause
from nucleate.structures.datasets import CRYSTAL_ARRAYS, FORMAT, SITE_ARRAYS
from nucleate.structures.formulas import composition_key
from nucleate.structures.io import iter_raw, source_files
from nucleate.structures.labels import LABELS, LabelTable, label
from nucleate.structures.parsing import COINCIDENT, Cell, RawRecord, parse_cell
from nucleate.structures.validity import minimum_distance
from nucleate.structures.wyckoff import encode_cells

CHUNK = 512  # crystals handed to a worker at a time


@dataclass(frozen=True)
class Filters:
    """Which crystals are kept; each crystal left out is listed with the bound it failed.

    Attributes:
        max_sites: most symmetry-distinct sites.
        max_atoms: most atoms in the cell as given.
        max_vol_per_atom: Å³; larger cells are mostly atoms in a box.
        max_e_hull: eV/atom; a crystal without the label is left out too.
        min_distance: Å; a crystal with a shorter contact is left out.
        exclude_elements: atomic numbers that must not occur.
    """

    max_sites: int = 20
    max_atoms: int | None = None
    max_vol_per_atom: float | None = None
    max_e_hull: float | None = None
    min_distance: float = 0.5
    exclude_elements: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a preparation did.

    Attributes:
        path: the prepared directory.
        n_read: crystals found in the source.
        n_kept: crystals prepared.
        skipped: number left out, by kind of reason.
        label_counts: for each label, how many of the prepared crystals have it from the
            "source" or the "table", or have it "unknown".
        examples: up to 20 (source, reason) of those left out.
    """

    path: Path
    n_read: int
    n_kept: int
    skipped: Mapping[str, int]
    label_counts: Mapping[str, Mapping[str, int]]
    examples: tuple[tuple[str, str], ...] = field(default=())


def prepare(
    source: str | Path | Iterable[RawRecord],
    out: str | Path,
    *,
    symprec: float = 0.01,
    filters: Filters | None = None,
    labels: LabelTable | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> Report:
    """Tokens of all crystals of a source, written to a directory.

    Args:
        source: path or glob of anything that :mod:`nucleate.structures.io` reads, or records.
        out: directory to make.
        symprec: tolerance of the symmetry search, Å.
        filters: which crystals to keep.
        labels: fills in the labels (energy above hull, formation energy, band gap) that the
            source lacks, before the filters look at them.
        processes: worker processes; a script that asks for several needs the usual
            ``if __name__ == "__main__"``.
        overwrite: replace ``out`` if it exists.

    Raises:
        InputError: an unreadable source, nothing left to prepare, ``labels`` that know none of
            the source's crystals, or ``out`` exists.
        StorageError: the disk is full or ``out`` can't be written.
    """
    out = Path(out)
    filters = filters or Filters()
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already.", "", "Choose another name or ask to overwrite.")
    files, name = [], "The source"
    if isinstance(source, (str, Path)):
        files, name, source = source_files(source), str(source), iter_raw(source)
    temporary: Path | None = None
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
        writer = _Writer(temporary)
        for chunk in _encoded(iter(source), _Task(symprec, filters), labels, processes):
            writer.add(chunk)
        if labels is not None and writer.n_in_table == 0:
            raise _nothing_labelled(name, writer, labels)
        if writer.n_kept == 0:
            raise _nothing_left(name, writer)
        settings = {
            "symprec": symprec,
            "filters": asdict(filters),
            "sources": [_provenance(file) for file in files],
            "label_table": None
            if labels is None
            else {**_provenance(labels.path), "columns": dict(labels.columns)},
        }
        report = writer.finish(out, settings)
        _take_place(temporary, out)
        return report
    except OSError as error:
        raise StorageError(
            f"{out} can't be written.",
            cause(error),
            "Free some space, or choose a folder that you may write to.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _nothing_left(source: str, writer: _Writer) -> InputError:
    counts = ", ".join(f"{n} {kind}" for kind, n in writer.skipped.most_common(5))
    example = "; ".join(f"{name}: {reason}" for name, reason in writer.examples[:3])
    why = f"{writer.n_read} crystals read, none kept ({counts}). {example}"
    filtered = any(kind.startswith("filter ") for kind in writer.skipped)
    fix = "Loosen the filters." if filtered else "Correct the crystals that the reasons name."
    return InputError(f"{source} leaves no crystal to prepare.", f"{why}.", fix)


def _nothing_labelled(source: str, writer: _Writer, labels: LabelTable) -> InputError:
    return InputError(
        f"{labels.path} has no label for any crystal of {source}.",
        f"Its ids are such as {next(iter(labels.rows), 'none')!r}, those of the source such as "
        f"{writer.example_id!r}.",
        "Give the table of these crystals; both must call them by the same id.",
    )


def _provenance(file: Path) -> dict[str, Any]:
    return {"path": str(file), "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _take_place(temporary: Path, out: Path) -> None:
    """Rename the finished directory to its name, an older one out of the way first."""
    temporary.chmod(0o755)
    if out.exists():
        old = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}.old."))
        out.rename(old / out.name)
        temporary.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(out)


def sha256_of(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class _Task:
    """Settings that a worker needs."""

    symprec: float
    filters: Filters


@dataclass(frozen=True)
class _Chunk:
    """Encoded crystals of one chunk and what was left out of it."""

    arrays: dict[str, np.ndarray]
    n_sites: np.ndarray
    ids: list[str]
    formulas: list[str]
    skipped: list[tuple[str, str]]
    label_counts: dict[str, Counter[str]]
    n_read: int
    n_in_table: int
    example_id: str


def _encoded(
    records: Iterator[RawRecord], task: _Task, labels: LabelTable | None, processes: int
) -> Iterator[_Chunk]:
    """Chunks in the order of the source, encoded here or in worker processes."""
    chunks = (
        (chunk, {} if labels is None else labels.of([record.id for record in chunk]))
        for chunk in iter(lambda: list(islice(records, CHUNK)), [])
    )
    if processes <= 1:
        for chunk, table in chunks:
            yield encode_chunk(chunk, table, task)
        return
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[_Chunk]] = deque()
    try:
        with ProcessPoolExecutor(processes, context, _quiet) as pool:
            for chunk, table in chunks:
                waiting.append(pool.submit(encode_chunk, chunk, table, task))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise NucleateError(
            "A worker process died while crystals were prepared.",
            "It ran out of memory, or a library crashed.",
            "Use fewer processes; with one, the crystal at fault can be found.",
        ) from error


def _quiet() -> None:
    """No remarks of the libraries in a worker: what they can't do comes back as a reason."""
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())


def encode_chunk(records: list[RawRecord], table: Mapping[str, np.ndarray], task: _Task) -> _Chunk:
    """Parse, filter and encode some records; what fails is listed with its reason.

    Args:
        records: n crystals.
        table: (n,) float64 for some labels, what a table says of these crystals.
        task: settings.
    """
    reasons = [""] * len(records)
    cells: list[Cell | str] = []
    given = {
        name: np.array([label(record, columns) for record in records])
        for name, columns in LABELS.items()
    }
    labels = {
        name: np.where(np.isnan(own), table.get(name, np.nan), own) for name, own in given.items()
    }
    for row, record in enumerate(records):
        cell, reason = parse_cell(record, contacts=False)  # looked at once, with the filters
        e_hull = labels["e_hull"][row]
        reasons[row] = reason or ("" if cell is None else _refused(cell, e_hull, task.filters))
        cells.append(reasons[row] if cell is None or reasons[row] else cell)
    batch, failures = encode_cells(cells, task.symprec)
    n_sites = batch.n_sites
    for row, failure in enumerate(failures):
        if not reasons[row] and failure:
            reasons[row] = f"no symmetry: {failure}"
        elif not reasons[row] and n_sites[row] > task.filters.max_sites:
            reasons[row] = f"filter max_sites: {n_sites[row]} sites"
    kept = [row for row, reason in enumerate(reasons) if not reason]
    batch = batch[np.array(kept, dtype=np.int64)]
    used = [cell for cell in (cells[row] for row in kept) if not isinstance(cell, str)]
    mask = batch.wyckoff > 0
    arrays = {name: getattr(batch, name)[mask] for name in SITE_ARRAYS}
    arrays |= {"space_group": batch.space_group, "lattice": batch.lattice}
    arrays["n_atoms"] = batch.n_atoms
    volumes = [abs(float(np.linalg.det(cell[0]))) / len(cell[1]) for cell in used]
    arrays["vol_per_atom"] = np.array(volumes)
    keys = [composition_key(cell[1]) for cell in used]
    arrays["formula_key"] = np.array(keys, dtype=np.uint64)
    arrays |= {name: values[kept].astype(np.float32) for name, values in labels.items()}
    return _Chunk(
        arrays=arrays,
        n_sites=mask.sum(axis=1),
        ids=[records[row].id for row in kept],
        formulas=[_formula(tuple(sorted(Counter(c[1].tolist()).items()))) for c in used],
        skipped=[(records[row].source, text) for row, text in enumerate(reasons) if text],
        label_counts={name: _origins(given[name][kept], labels[name][kept]) for name in labels},
        n_read=len(records),
        n_in_table=int(np.any([~np.isnan(values) for values in table.values()], axis=0).sum()),
        example_id=records[0].id,
    )


def _origins(given: np.ndarray, filled: np.ndarray) -> Counter[str]:
    """How many labels come from the source, from the table, from neither."""
    source, known = int((~np.isnan(given)).sum()), int((~np.isnan(filled)).sum())
    return Counter(source=source, table=known - source, unknown=len(filled) - known)


@lru_cache(maxsize=4096)
def _formula(counts: tuple[tuple[int, int], ...]) -> str:
    """Reduced formula, as pymatgen writes it, of (atomic number, count) pairs."""
    from pymatgen.core import Composition, Element

    return Composition({Element.from_Z(z): n for z, n in counts}).reduced_formula


def _refused(cell: Cell, e_hull: float, filters: Filters) -> str:
    """The bound that a cell fails, empty if none."""
    lattice, numbers, frac = cell
    if filters.max_atoms is not None and len(numbers) > filters.max_atoms:
        return f"filter max_atoms: {len(numbers)} atoms"
    volume = abs(float(np.linalg.det(lattice))) / len(numbers)
    if filters.max_vol_per_atom is not None and volume >= filters.max_vol_per_atom:
        return f"filter max_vol_per_atom: {volume:.1f} Å³"
    if filters.max_e_hull is not None and not e_hull <= filters.max_e_hull:
        found = "no label" if np.isnan(e_hull) else f"{e_hull:.3f} eV/atom"
        return f"filter max_e_hull: {found}"
    excluded = sorted(set(numbers.tolist()) & set(filters.exclude_elements))
    if excluded:
        return f"filter exclude_elements: holds atomic number {excluded[0]}"
    distance = minimum_distance(lattice, frac)
    if distance < COINCIDENT:
        return f"two atoms on one spot: {distance:.4f} Å apart"
    if distance < filters.min_distance:
        return f"filter min_distance: {distance:.3f} Å"
    return ""


# -------------------------------------------------------------------------------- writing


class _Column:
    """An ``.npy`` file that grows; its header is completed at the end."""

    HEADER = 128

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self._stream: IO[bytes] = path.open("wb")
        self._dtype, self._shape, self.rows = np.dtype(dtype), shape, 0
        self.sha256 = hashlib.sha256()
        self._stream.write(b"\0" * self.HEADER)

    def append(self, values: np.ndarray) -> None:
        """Rows to add, (n, *shape)."""
        content = np.ascontiguousarray(values, dtype=self._dtype).reshape(-1, *self._shape)
        data = content.tobytes()
        self.sha256.update(data)
        self._stream.write(data)
        self.rows += len(content)

    def close(self) -> None:
        """Write the header and flush to disk."""
        shape = (self.rows, *self._shape)
        order = f"{{'descr': {self._dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
        text = order.encode("latin1").ljust(self.HEADER - 11) + b"\n"
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        self._stream.seek(0)
        self._stream.write(header)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()


class _Text:
    """Strings that grow, as bytes and offsets."""

    def __init__(self, path: Path, name: str) -> None:
        self._content = _Column(path / f"{name}.npy", "|u1", ())
        self._offsets = _Column(path / f"{name}_offsets.npy", "<i8", ())
        self._offsets.append(np.zeros(1))

    def append(self, values: list[str]) -> None:
        """Strings to add."""
        encoded = [value.encode() for value in values]
        start = self._content.rows
        self._content.append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        self._offsets.append(start + np.cumsum([len(item) for item in encoded], dtype=np.int64))

    def close(self) -> None:
        """Complete both files."""
        self._content.close()
        self._offsets.close()


class _Writer:
    """Appends chunks to the files of a directory and completes them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kinds = CRYSTAL_ARRAYS | {name: ("<f4", ()) for name in LABELS} | SITE_ARRAYS
        self._columns = {
            name: _Column(path / f"{name}.npy", dtype, shape)
            for name, (dtype, shape) in kinds.items()
        }
        self._offsets = _Column(path / "offsets.npy", "<i8", ())
        self._offsets.append(np.zeros(1))
        self._texts = {name: _Text(path, name) for name in ("id", "formula")}
        self._skipped = (path / "skipped.jsonl").open("w", encoding="utf-8")
        self.n_read = self.n_kept = self.n_in_table = 0
        self.example_id = ""
        self.label_counts: dict[str, Counter[str]] = {name: Counter() for name in LABELS}
        self.skipped: Counter[str] = Counter()
        self.examples: list[tuple[str, str]] = []
        self._histogram = np.zeros(231, np.int64)

    def add(self, chunk: _Chunk) -> None:
        """Append one chunk."""
        start = self._columns["wyckoff"].rows
        for name, column in self._columns.items():
            column.append(chunk.arrays[name])
        self._offsets.append(start + np.cumsum(chunk.n_sites, dtype=np.int64))
        self._texts["id"].append(chunk.ids)
        self._texts["formula"].append(chunk.formulas)
        self._histogram += np.bincount(chunk.arrays["space_group"], minlength=231)
        for source, reason in chunk.skipped:
            self.skipped[reason.split(":")[0]] += 1
            line = json.dumps({"source": source, "reason": reason}, ensure_ascii=False)
            self._skipped.write(line + "\n")
        self.examples += chunk.skipped[: 20 - len(self.examples)]
        self.n_read += chunk.n_read
        self.n_kept += len(chunk.ids)
        self.n_in_table += chunk.n_in_table
        self.example_id = self.example_id or chunk.example_id
        for name, counts in chunk.label_counts.items():
            self.label_counts[name].update(counts)

    def finish(self, out: Path, settings: Mapping[str, Any]) -> Report:
        """Complete all files and write ``meta.json``."""
        total = hashlib.sha256()
        for name, column in {**self._columns, "offsets": self._offsets}.items():
            column.close()
            total.update(f"{name}={column.sha256.hexdigest()};".encode())
        for text in self._texts.values():
            text.close()
        self._skipped.close()
        label_counts = {name: dict(counts) for name, counts in self.label_counts.items()}
        meta = {
            "format": FORMAT,
            "n_crystals": self.n_kept,
            "n_sites": self._columns["wyckoff"].rows,
            "n_read": self.n_read,
            "skipped": dict(self.skipped.most_common()),
            "labels": list(LABELS),
            "label_counts": label_counts,
            **settings,
            "space_group_histogram": {
                str(group): int(n) for group, n in enumerate(self._histogram) if n
            },
            "sha256": total.hexdigest(),
            "versions": _versions(),
        }
        content = json.dumps(meta, indent=2, ensure_ascii=False)
        (self._path / "meta.json").write_text(content, encoding="utf-8")
        return Report(
            path=out,
            n_read=self.n_read,
            n_kept=self.n_kept,
            skipped=dict(self.skipped),
            label_counts=label_counts,
            examples=tuple(self.examples),
        )


def _versions() -> dict[str, str]:
    """Versions of what shaped the tokens."""
    found = {}
    for name in ("nucleate", "moyopy", "numpy", "pymatgen"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
