"""Crystals from files, and back into files.

Read: CIF, POSCAR/CONTCAR, extxyz/xyz, JSON and JSON lines, CSV with a ``cif`` or ``structure``
column (the layout of MP-20 and Alex-20), parquet; a directory or glob of these; gzip-compressed
tables, and members of a zip archive (``data.zip`` or ``data.zip/folder/train.csv``).

Where a file holds one crystal, a defect is an :class:`~nucleate.errors.InputError`. In a table,
a directory or a file of several frames it is a record with a reason, so that one bad row never
hides the others. Reading is lazy, and split in two: :func:`iter_raw` walks the files, and
:func:`parse_cell` does the costly work, which other processes can share.

Crystals come out as plain elements on sites: oxidation states, magnetic moments and labels are
dropped. No cell of any table is ever evaluated as code.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nucleate.errors import InputError
from nucleate.structures.parsing import ID_COLUMNS, RawRecord, parse_cell, to_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

SUFFIXES = {
    ".cif": "cif",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".contcar": "poscar",
    ".xyz": "xyz",
    ".extxyz": "xyz",
    ".csv": "csv",
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "jsonl",
    ".zip": "zip",
}
KNOWN = "CIF (.cif), POSCAR/CONTCAR (.vasp), .extxyz, .csv, .parquet, .json, .jsonl, .zip"


@dataclass(frozen=True)
class Record:
    """A crystal that was read, or why it could not be.

    Attributes:
        structure: the crystal, None where ``reason`` says why not.
        source: "file" or "file:row".
        reason: empty if all is well; its first words, before a colon, name the kind of defect.
        properties: further columns of the row.
        id: the row's own identifier if it has one, else the source.
    """

    structure: Structure | None
    source: str
    reason: str
    properties: Mapping[str, Any]
    id: str


def read(source: str | Path, *, strict: bool | None = None) -> Iterator[Record]:
    """Crystals of a file, directory or glob, lazily and in a fixed order.

    Args:
        source: path or glob pattern.
        strict: raise at the first defect (True) or report every one (False); by default a
            defect raises only in a file that holds a single crystal.

    Raises:
        InputError: nothing there, an unreadable file, an unknown extension, or a defect.
    """
    for raw in iter_raw(source):
        cell, reason = parse_cell(raw)
        if reason and (raw.alone if strict is None else strict):
            raise defect(raw.source, reason)
        structure = None if cell is None else to_structure(cell)
        yield Record(structure, raw.source, reason, raw.properties, raw.id)


def read_structure(path: str | Path) -> Structure:
    """The one crystal of a file.

    Raises:
        InputError: the file holds no crystal, a defective one, or several.
    """
    found = []
    for record in read(path, strict=True):
        found.append(record.structure)
        if len(found) > 1:
            raise InputError(
                f"{path} holds several crystals.",
                "One is needed here.",
                "Give a file with one crystal, or read all with nucleate.structures.io.read.",
            )
    structure = found[0]
    if structure is None:  # read(strict=True) has raised
        raise AssertionError(path)
    return structure


def defect(source: str, reason: str) -> InputError:
    """The error for a crystal that can't be used, with the remedy that fits."""
    remedies = {
        "disordered": "Give an ordered crystal: choose one occupant for each site.",
        "two atoms on one spot": "Remove one of the two atoms or correct their coordinates.",
        "empty": "Write the file again; it holds nothing.",
        "unknown extension": f"Use one of: {KNOWN}.",
    }
    kind = reason.split(":")[0]
    fix = remedies.get(kind, "Correct the file; pymatgen or VESTA show what they make of it.")
    return InputError(f"{source} can't be read as a crystal.", f"{reason.rstrip('.')}.", fix)


# --------------------------------------------------------------------------------- walking


def source_files(source: str | Path) -> list[Path]:
    """The files that a path, directory or glob stands for, sorted; archives as a whole."""
    text = str(source)
    path = Path(source)
    archive, _ = _split_archive(path)
    if archive is not None:
        return [archive]
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)]
    elif glob.has_magic(text):
        matches = glob.iglob(text, recursive=True)  # noqa: PTH207 - Path.glob takes no roots
        found = [Path(match) for match in matches if Path(match).is_file()]
    else:
        raise InputError(
            f"{source} does not exist.", "", "Check the path; quote a glob such as 'folder/*.cif'."
        )
    if not found:
        raise InputError(f"{source} holds no file.", "", f"Readable are: {KNOWN}.")
    return sorted(found)


def iter_raw(source: str | Path) -> Iterator[RawRecord]:
    """Unparsed crystals of a file, directory or glob; see :func:`read`."""
    path = Path(source)
    archive, member = _split_archive(path)
    files = source_files(source)
    single = archive is None and path.is_file()
    if member is not None and archive is not None:
        yield from _zip(archive, member)
        return
    for file in files:
        if single:
            yield from _file(file)
            continue
        try:
            for raw in _file(file):
                yield RawRecord(raw.kind, raw.payload, raw.source, raw.properties)
        except InputError as error:
            yield RawRecord("bad", f"unreadable file: {error.why or error.what}", str(file))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _split_archive(path: Path) -> tuple[Path | None, str | None]:
    """``data.zip/folder/train.csv`` as (data.zip, folder/train.csv), else (None, None)."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None, None


def _kind(name: str) -> tuple[str | None, bool]:
    """Format by file name, and whether the file is gzip-compressed."""
    path = Path(name)
    packed = path.suffix.lower() == ".gz"
    path = path.with_suffix("") if packed else path
    if path.name.upper().startswith(("POSCAR", "CONTCAR")):
        return "poscar", packed
    return SUFFIXES.get(path.suffix.lower()), packed


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the file system and of damaged containers as InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text.", str(error), "Check that the file has the right extension."
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise InputError(
            f"{path} can't be read.", str(error), "Check the file's permissions, or fetch it again."
        ) from error


def _file(path: Path) -> Iterator[RawRecord]:
    """Unparsed crystals of one file."""
    kind, packed = _kind(path.name)
    if kind is None:
        raise InputError(
            f"{path} has an unknown extension.",
            f"unknown extension: {path.suffix or 'none'}",
            f"Readable are: {KNOWN}.",
        )
    with _reading(path):
        if path.stat().st_size == 0:
            raise defect(str(path), "empty")
        if kind == "zip":
            yield from _zip(path, None)
        elif kind == "parquet":
            yield from _parquet(path)
        else:
            with ExitStack() as stack:
                stream: Any = stack.enter_context(path.open("rb"))
                stream = stack.enter_context(gzip.open(stream)) if packed else stream
                yield from _stream(stream, kind, str(path))


def _stream(stream: IO[bytes], kind: str, name: str) -> Iterator[RawRecord]:
    """Unparsed crystals of an open file of a text format."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="" if kind == "csv" else None)
    if kind == "csv":
        yield from _csv(text, name)
    elif kind == "jsonl":
        yield from _jsonl(text, name)
    elif kind == "xyz":
        yield from _xyz(text, name)
    elif kind == "cif":
        blocks = [b for b in re.split(r"(?im)^(?=data_)", text.read()) if "_atom_site" in b]
        for row, block in enumerate(blocks, 1):
            label = name if len(blocks) == 1 else f"{name}:{row}"
            yield RawRecord("cif", block, label, alone=len(blocks) == 1)
        if not blocks:
            yield RawRecord("bad", "no crystal: the CIF lists no atoms", name, alone=True)
    else:
        yield RawRecord("structure" if kind == "json" else kind, text.read(), name, alone=True)


def _zip(path: Path, member: str | None) -> Iterator[RawRecord]:
    """Unparsed crystals of one member of an archive, or of all in a known text format."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if not n.endswith("/"))
        if member is not None and member not in names:
            listed = ", ".join(names[:8])
            raise InputError(f"{path} has no member {member}.", f"It holds: {listed}.")
        for name in [member] if member is not None else names:
            kind, packed = _kind(name)
            if kind in (None, "zip", "parquet") or packed:
                yield RawRecord("bad", f"unknown extension: {name}", f"{path}/{name}")
                continue
            with archive.open(name) as stream:
                for raw in _stream(stream, str(kind), f"{path}/{name}"):
                    yield RawRecord(raw.kind, raw.payload, raw.source, raw.properties)


# ------------------------------------------------------------------------------- tables


def _csv(text: IO[str], name: str) -> Iterator[RawRecord]:
    """Rows of a CSV file; a row's number is that of its record, the header not counted."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.DictReader(text)
    column = next((c for c in ("cif", "structure") if c in (rows.fieldnames or ())), None)
    if column is None:
        raise InputError(
            f"{name} has no column with crystals.",
            f"Its columns are: {', '.join(rows.fieldnames or ['none'])}.",
            "Name the column with CIF text 'cif', or the one with pymatgen JSON 'structure'.",
        )
    kind = "cif" if column == "cif" else "structure"
    count = 0
    for count, row in enumerate(rows, 1):
        properties = {
            key: _value(text)
            for key, text in row.items()
            if key and key != column and isinstance(text, str) and text != ""
        }
        for key in ID_COLUMNS:
            if row.get(key):
                properties[key] = row[key]
        payload = row[column]
        if not payload:
            yield RawRecord("bad", "empty: no crystal in this row", f"{name}:{count}", properties)
        else:
            yield RawRecord(kind, payload, f"{name}:{count}", properties)
    if count == 0:
        raise InputError(f"{name} has no rows.", "It holds only the header.", "")


def _value(text: str) -> Any:
    """A number or truth value if the text plainly is one, else the text."""
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip()):
        return float(text)
    return text


def _jsonl(text: IO[str], name: str) -> Iterator[RawRecord]:
    """Lines of JSON objects with a ``cif`` or ``structure`` key, or that are structures."""
    count = 0
    for count, line in enumerate(text, 1):
        label = f"{name}:{count}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield RawRecord("bad", f"broken JSON: {error}", label)
            continue
        if not isinstance(row, dict):
            yield RawRecord("bad", "broken JSON: a line is no object", label)
        elif isinstance(row.get("cif"), str):
            rest = {k: v for k, v in row.items() if k not in ("cif", "structure")}
            yield RawRecord("cif", row["cif"], label, rest)
        elif "structure" in row:
            rest = {k: v for k, v in row.items() if k != "structure"}
            yield RawRecord("structure", row["structure"], label, rest)
        else:
            yield RawRecord("structure", row, label)
    if count == 0:
        raise InputError(f"{name} has no rows.", "", "")


def _xyz(text: IO[str], name: str) -> Iterator[RawRecord]:
    """Frames of an (extended) XYZ file; what a comment line holds becomes the properties."""
    from ase.io.extxyz import key_val_str_to_dict

    frame, number = 0, 0
    lines = iter(text)
    for line in lines:
        number += 1
        if not line.strip():
            continue
        frame += 1
        label = f"{name}:{frame}"
        if not line.strip().isdecimal():
            reason = f"broken xyz: line {number} is no number of atoms; the rest is left out"
            yield RawRecord("bad", reason, label, alone=frame == 1)
            return
        block = [line, *islice(lines, int(line) + 1)]
        number += len(block) - 1
        if len(block) < int(line) + 2:
            yield RawRecord("bad", "broken xyz: the file ends within a frame", label)
            return
        try:
            comment = key_val_str_to_dict(block[1])
        except (ValueError, IndexError, KeyError):
            comment = {}
        properties = {k: v for k, v in comment.items() if k not in ("Lattice", "Properties", "pbc")}
        yield RawRecord("xyz", "".join(block), label, properties)
    if frame == 0:
        yield RawRecord("bad", "empty: no frame", name, alone=True)


def _parquet(path: Path) -> Iterator[RawRecord]:
    """Rows of a parquet file with ``lattice``, ``numbers``, ``frac_coords``, or with ``cif``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is no parquet file.", str(error), "Fetch it again.") from error
    names = set(file.schema_arrow.names)
    arrays = {"lattice", "numbers", "frac_coords"} <= names
    column = next((c for c in ("cif", "structure") if c in names), None)
    if not arrays and column is None:
        raise InputError(
            f"{path} has no column with crystals.",
            f"Its columns are: {', '.join(sorted(names))}.",
            "Needed are lattice, numbers and frac_coords, or a column 'cif' or 'structure'.",
        )
    used = ("lattice", "numbers", "frac_coords") if arrays else (column,)
    row = 0
    for batch in file.iter_batches(batch_size=1024):
        for item in batch.to_pylist():
            row += 1
            rest = {k: v for k, v in item.items() if k not in used and v is not None}
            payload = tuple(item[c] for c in used) if arrays else item[column]
            kind = "cell" if arrays else ("cif" if column == "cif" else "structure")
            yield RawRecord(kind, payload, f"{path}:{row}", rest)
    if row == 0:
        raise InputError(f"{path} has no rows.", "", "")
