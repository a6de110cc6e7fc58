"""Energies of all crystals of a data set by a potential, chunk by chunk and resumable."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import CheckpointError, InputError
from nucleate.physics.cells import Cell
from nucleate.physics.phases import PhaseTable, file_sha256
from nucleate.physics.relax import lasting
from nucleate.structures.elements import SYMBOLS
from nucleate.structures.writing import replacing

if TYPE_CHECKING:
    from nucleate.physics.relax import RelaxSettings
    from nucleate.protocols import Potential

ENERGIES = "energies.csv"
LARGEST_ENERGY = 50.0  # eV/atom, beyond which an energy is the potential's failure
REASON_CHARACTERS = 160


@dataclass(frozen=True)
class Selection:
    """Which crystals of a data set count as phases.

    Attributes:
        max_vol_per_atom: Å³; emptier cells are left out, unless they are elements.
        max_e_hull: eV/atom; crystals whose column ``e_hull`` says more are left out.
    """

    max_vol_per_atom: float = 60.0
    max_e_hull: float | None = None


@dataclass(frozen=True)
class _Entry:
    """One crystal on its way: where it came from, and its cell or why there is none."""

    id: str
    cell: Cell | None
    reason: str


def survey(
    source: str | Path,
    potential: Potential,
    folder: str | Path,
    *,
    selection: Selection | None = None,
    relax: RelaxSettings | None = None,
    chunk_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> PhaseTable:
    """Energies of the crystals of a data set.

    Args:
        source: file, folder or glob pattern of crystals.
        potential: gives the energies.
        folder: keeps the chunks and, at the end, ``energies.csv`` (id, formula, eV/atom, reason).
        selection: which crystals count.
        relax: settings, if the crystals shall be relaxed first.
        chunk_size: crystals in a chunk.
        progress: called with the numbers of crystals done and in all.

    Returns:
        A table of total energies; ``skipped`` counts what was left out, by reason.

    Raises:
        CheckpointError: ``folder`` holds chunks of another data set, potential or setting.
        InputError: the source holds no crystal that can be used.
    """
    from nucleate.structures.io import source_files

    folder, selection = Path(folder), selection or Selection()
    hashes = {path.name: file_sha256(path) for path in source_files(source)}
    _open_folder(
        folder,
        {
            "data": hashes,
            "potential": potential.name,
            "weights_hash": potential.weights_hash,
            "relax": None if relax is None else json.loads(json.dumps(lasting(relax))),
            "selection": asdict(selection),
            "chunk_size": chunk_size,
        },
    )
    total = sum(1 for _ in _entries(source, selection)) if progress else 0
    entries, done, number = _entries(source, selection), 0, 0
    formulas: list[str] = []
    energies: list[np.ndarray] = []
    reasons: Counter[str] = Counter()
    with replacing(folder / ENERGIES) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("id", "formula", "energy_eV_per_atom", "reason"))
        while chunk := list(islice(entries, chunk_size)):
            values, why = _chunk(folder / f"chunk-{number:06d}.npz", chunk, potential, relax)
            for entry, value, reason in zip(chunk, values, why, strict=True):
                formula = "" if entry.cell is None else _formula(entry.cell.numbers)
                number_text = "" if reason else repr(float(value))
                table.writerow((entry.id, formula, number_text, reason))
                if reason:
                    reasons[reason.split(":")[0]] += 1
                else:
                    formulas.append(formula)
            energies.append(values[np.isfinite(values)])
            done, number = done + len(chunk), number + 1
            if progress:
                progress(done, total)
    if not formulas:
        raise InputError(
            f"{source} gave no energy at all",
            "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3)),
            "Check the data set and the potential with one crystal first.",
        )
    return PhaseTable(
        formulas,
        np.concatenate(energies),
        formation=False,
        correction=potential.correction,
        data_hashes=hashes,
        skipped=[f"{count} of {done} crystals left out: {r}" for r, count in reasons.most_common()],
    )


def _entries(source: str | Path, selection: Selection) -> Iterator[_Entry]:
    """The crystals of a data set in their order, those left out with a reason."""
    from nucleate.structures.io import iter_raw
    from nucleate.structures.parsing import parse_cell

    for raw in iter_raw(source):
        parsed, reason = parse_cell(raw)
        if parsed is None:
            yield _Entry(raw.id, None, reason)
            continue
        lattice, numbers, frac = parsed
        volume = abs(float(np.linalg.det(lattice))) / len(numbers)
        e_hull = raw.properties.get("e_hull")
        limit = selection.max_e_hull
        if volume >= selection.max_vol_per_atom and len(set(numbers.tolist())) > 1:
            reason = f"more than {selection.max_vol_per_atom:g} Å³/atom"
        elif limit is not None and e_hull is not None and float(e_hull) > limit:
            reason = f"labelled more than {limit:g} eV/atom above the hull"
        yield _Entry(
            raw.id,
            Cell(
                np.asarray(lattice, dtype=np.float64),
                np.asarray(numbers, dtype=np.int64),
                np.asarray(frac, dtype=np.float64),
            ),
            reason,
        )


def _chunk(
    file: Path, chunk: Sequence[_Entry], potential: Potential, relax: RelaxSettings | None
) -> tuple[np.ndarray, list[str]]:
    """Energies (b,), eV/atom, and reasons of one chunk, from its file if it has been done."""
    digest = hashlib.sha256()
    for entry in chunk:
        digest.update(f"{entry.id}|{entry.reason}|".encode())
        for array in entry.cell or ():
            digest.update(np.ascontiguousarray(array).tobytes())
    content = digest.hexdigest()
    if file.exists():
        return _read_chunk(file, content)
    energies = np.full(len(chunk), np.nan)
    reasons = [entry.reason for entry in chunk]
    rows = [i for i, entry in enumerate(chunk) if not entry.reason and entry.cell is not None]
    cells = [chunk[i].cell for i in rows]
    for i, (value, reason) in zip(rows, _energies(cells, potential, relax), strict=True):
        energies[i], reasons[i] = value, reason
    with replacing(file, "wb") as stream:
        text = np.array(reasons, dtype=str)
        np.savez(stream, energies=energies, reasons=text, content=np.array(content))
    return energies, reasons


def _read_chunk(file: Path, content: str) -> tuple[np.ndarray, list[str]]:
    import zipfile

    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["content"]) == content:
                return stored["energies"], [str(reason) for reason in stored["reasons"]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"cannot read {file}", str(error), "Delete this file; its crystals are computed again."
        ) from error
    raise CheckpointError(
        f"{file} holds other crystals than the data set has now",
        "The data set has changed since the survey was begun.",
        "Begin again in an empty folder.",
    )


def _energies(
    cells: Sequence[Cell | None], potential: Potential, relax: RelaxSettings | None
) -> Iterator[tuple[float, str]]:
    """(eV/atom, "") or (NaN, reason) of each cell."""
    from nucleate.protocols import PotentialResult

    given = [cell for cell in cells if cell is not None]
    if not given:
        return
    if relax is None:
        results: Sequence[object] = potential.evaluate(given)  # type: ignore[arg-type]
    else:
        from nucleate.physics.relax import relax as relax_all

        results = relax_all(given, potential, relax)
    for result in results:
        if isinstance(result, Exception):
            lines = str(result).splitlines()
            value, reason = np.nan, lines[0] if lines else type(result).__name__
        elif isinstance(result, PotentialResult):
            value, reason = float(result.energy), ""
        else:
            value = float(result.energy_after)  # type: ignore[attr-defined]
            ended = result.status  # type: ignore[attr-defined]
            reason = "" if ended in ("converged", "step cap") else f"relaxation {ended}"
        if not reason and not abs(value) <= LARGEST_ENERGY:
            reason = f"absurd energy: {value:.4g} eV/atom"
        yield (np.nan if reason else value), reason[:REASON_CHARACTERS]


def _formula(numbers: np.ndarray) -> str:
    """Elements with their counts, by atomic number, such as Li2O1."""
    found, counts = np.unique(numbers, return_counts=True)
    return "".join(f"{SYMBOLS[z - 1]}{n}" for z, n in zip(found, counts, strict=True))


def _open_folder(folder: Path, settings: dict[str, object]) -> None:
    """Make the folder, or see that what it holds was made with the same settings."""
    file = folder / "survey.json"
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read {file}", str(error), "Begin again in an empty folder."
            ) from error
        differing = sorted(k for k in settings if before.get(k) != settings[k])
        if differing:
            raise CheckpointError(
                f"{folder} holds a survey with other settings: {', '.join(differing)}",
                "Energies of different settings can't be joined.",
                "Use the same data set, potential and settings, or an empty folder.",
            )
        return
    with replacing(file) as stream:
        stream.write(json.dumps(settings, indent=1, sort_keys=True) + "\n")
