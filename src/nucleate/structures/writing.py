"""Crystals and result tables into files, each written whole or not at all.

CIF carries the symmetry found at a stated tolerance; extended XYZ carries properties that ASE
reads back; tables are CSV or JSON lines. Every file appears under its name only when it is
complete, and a full disk or a missing permission is a :class:`~nucleate.errors.StorageError`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError, StorageError, cause

if TYPE_CHECKING:
    from pymatgen.core import Structure


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open temporary file that takes the place of ``path`` once the block has ended well.

    Args:
        path: final name; its folder is made if missing.
        mode: "w" for UTF-8 text or "wb" for bytes.

    Raises:
        StorageError: the disk is full or the place can't be written.
    """
    path = Path(path)
    temporary: Path | None = None
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        follow_umask(temporary)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} can't be written.",
            cause(error),
            "Free some space, or choose a folder that you may write to.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_place(path: str | Path) -> None:
    """Refuse a file or folder that can't be written, before the work whose result it is to hold.

    Raises:
        StorageError: no permission, or a file where a folder would have to be.
    """
    place = Path(path).absolute()
    try:
        folder = place if place.is_dir() else next(p for p in place.parents if p.exists())
        why = "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: you may not write there."
        if not folder.is_dir():
            why = f"{folder}: it is no folder."
    except OSError as error:  # a folder that may not be searched
        why = cause(error)
    if why:
        raise StorageError(
            f"{path} can't be written.", why, "Choose a folder that you may write to."
        )


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a newly made one, where a library has set narrower ones."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def cif_text(structure: Structure, symprec: float | None = 0.01) -> str:
    """CIF text of a crystal.

    Args:
        structure: ordered crystal.
        symprec: tolerance in Å at which the space group is found and its asymmetric unit
            written; None writes every atom in P 1. A crystal whose symmetry can't be found is
            written in P 1.
    """
    from pymatgen.io.cif import CifWriter
    from pymatgen.symmetry.analyzer import SymmetryUndeterminedError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if symprec is not None:
            try:
                return str(CifWriter(structure, symprec=symprec))
            except (SymmetryUndeterminedError, ValueError, TypeError, IndexError):
                return str(CifWriter(structure))
        return str(CifWriter(structure))


def write_cif(
    structure: Structure, path: str | Path, symprec: float | None = 0.01, comment: str = ""
) -> None:
    """One crystal as CIF, below a line of comment if there is one; see :func:`cif_text`."""
    text = cif_text(structure, symprec)
    with replacing(path) as stream:
        stream.write(f"# {comment}\n{text}" if comment else text)


def write_cifs(
    structures: Sequence[Structure],
    folder: str | Path,
    names: Sequence[str] | None = None,
    symprec: float | None = 0.01,
    comments: Sequence[str] | None = None,
) -> list[Path]:
    """Each crystal as a CIF of its own, and no new one where one of them can't be written.

    Args:
        structures: N crystals.
        folder: made if missing.
        names: N file names without extension; by default rank and reduced formula.
        symprec: see :func:`cif_text`.
        comments: N lines that the files begin with.

    Returns:
        The N paths written.
    """
    width = len(str(len(structures)))
    if names is None:
        names = [
            f"{rank:0{width}d}_{structure.composition.reduced_formula}"
            for rank, structure in enumerate(structures, 1)
        ]
    paths = [Path(folder) / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name)}.cif" for name in names]
    if len(set(paths)) < len(paths):
        raise ValueError("file names of crystals must differ")
    said = [""] * len(paths) if comments is None else comments
    new = [path for path in paths if not path.exists()]
    for structure, path, comment in zip(structures, paths, said, strict=True):
        try:
            write_cif(structure, path, symprec, comment)
        except StorageError:
            for written in new:
                written.unlink(missing_ok=True)
            raise
    return paths


def write_extxyz(
    structures: Sequence[Structure],
    path: str | Path,
    properties: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """All crystals as frames of one extended XYZ file, which ASE reads back with properties.

    Args:
        structures: N crystals.
        path: file to write.
        properties: N mappings of names (units in the name) to numbers, truth values or text.
            None and NaN are left out.
    """
    from ase import Atoms
    from ase.io import write

    frames = []
    for index, structure in enumerate(structures):
        atoms = Atoms(
            numbers=[site.specie.Z for site in structure],
            scaled_positions=structure.frac_coords,
            cell=structure.lattice.matrix,
            pbc=True,
        )
        atoms.info.update(_plain(properties[index]) if properties is not None else {})
        frames.append(atoms)
    with replacing(path) as stream:
        write(stream, frames, format="extxyz")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Plain Python values of a row, without None and NaN."""
    values = {key: _scalar(value) for key, value in row.items()}
    return {key: value for key, value in values.items() if value is not None}


def _scalar(value: Any) -> Any:
    """A value that JSON knows: numpy scalars unwrapped, NaN and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return [_scalar(item) for item in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def column_name(name: str, unit: str) -> str:
    """Name of a column of a table, with its unit.

    Example:
        >>> column_name("density", "g/cm^3"), column_name("coincident_area", "Å²")
        ('density_g_per_cm3', 'coincident_area_A2')
    """
    plain = unit.replace("^", "").replace("μ", "mu").translate(str.maketrans("Å²³", "A23"))
    plain = re.sub(r"[^A-Za-z0-9]+", "_", plain.replace("/", "_per_")).strip("_")
    return f"{name}_{plain}" if plain else name


def write_table(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """A table as CSV (``.csv``) or JSON lines (``.jsonl``).

    Args:
        rows: one mapping a row; the columns are those of all rows, in order of appearance.
            NaN and missing values are empty cells in CSV and null in JSON lines.
        path: file to write; its extension chooses the format.

    Raises:
        InputError: another extension.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise InputError(
            f"{path}: no table format has the extension {suffix or 'none'}.",
            "",
            "End the name in .csv or .jsonl.",
        )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as stream:
        if suffix == ".jsonl":
            for row in rows:
                line = {key: _scalar(row.get(key)) for key in columns}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = [_scalar(row.get(key)) for key in columns]
            writer.writerow(["" if value is None else value for value in values])
