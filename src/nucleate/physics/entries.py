"""Known phases from computed entries: pymatgen, the Materials Project, Alexandria.

Files are JSON, plain or compressed (.gz, .bz2): a list of entry dictionaries, a mapping with the
list under "entries", or a mapping name -> entry. Only composition, energies and run parameters are
read; no class named in the file is ever imported.
"""

from __future__ import annotations

import bz2
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError, RecipeError
from nucleate.physics.phases import PhaseTable, file_sha256

if TYPE_CHECKING:
    from pymatgen.entries.computed_entries import ComputedEntry

SCHEMES = ("MP2020", "legacy", "none")
PBE_RUNS = frozenset({"GGA", "GGA+U", "PBE", "PBE+U", "GGA_U", ""})
MIXED_FRACTION = 0.1  # of the oxygen compounds may lack a correction for reasons of chemistry


@dataclass(frozen=True)
class _Entry:
    """What is needed of a computed entry.

    Attributes:
        composition: symbol -> atoms.
        raw: eV of the cell before corrections.
        correction: eV of the cell.
        scheme: correction scheme, "" where the entry has none.
        parameters: run_type, hubbards.
        data: oxide_type and the like.
        structure: dictionary of the structure, {} if there is none.
    """

    composition: dict[str, float]
    raw: float
    correction: float
    scheme: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)


def read_entries(path: Path | str, *, correction: str | None = None) -> PhaseTable:
    """Phases of a file of computed entries; see :func:`phases_from_entries`.

    Raises:
        InputError: the file can't be read, or its entries can't be on one hull.
    """
    file = Path(path)
    openers = {".gz": gzip.open, ".bz2": bz2.open}
    try:
        with openers.get(file.suffix, open)(file, "rt", encoding="utf-8") as stream:  # type: ignore[operator]
            content = json.load(stream)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"cannot read the entries {file}",
            str(error),
            "Give a JSON file of computed entries, plain or .gz or .bz2.",
        ) from error
    if isinstance(content, dict):
        content = content.get("entries", list(content.values()))
    if not isinstance(content, list):
        raise InputError(
            f"{file} holds no list of entries",
            fix="Give a list of ComputedEntry dictionaries, or a mapping with one as 'entries'.",
        )
    return phases_from_entries(content, correction=correction, source=file)


def phases_from_entries(
    entries: Sequence[ComputedEntry | Mapping[str, Any]],
    *,
    correction: str | None = None,
    source: Path | None = None,
) -> PhaseTable:
    """Phases with total energies, eV/atom, from computed entries.

    Args:
        entries: pymatgen ``ComputedEntry`` (or with structure), or their dictionaries.
        correction: what the phases shall carry. None: what the entries carry, which must be one
            scheme; "none": raw energies, corrections taken off; "MP2020": raw energies with
            pymatgen's ``MaterialsProject2020Compatibility`` applied anew.
        source: the file they came from.

    Raises:
        InputError: an entry is broken, or the entries mix levels of theory or correction schemes.
        RecipeError: an unknown scheme.
    """
    if correction not in (None, "none", "MP2020"):
        raise RecipeError(f"unknown correction {correction!r}", fix="Use None, 'none' or 'MP2020'.")
    where = "the entries" if source is None else str(source)
    read = []
    for i, entry in enumerate(entries):
        try:
            read.append(_read(entry if isinstance(entry, Mapping) else entry.as_dict()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"entry {i} of {where} can't be read",
                f"{type(error).__name__}: {error}",
                "An entry needs 'energy' and 'composition' (or 'structure').",
            ) from error
    _check_level(read, where)
    skipped: list[str] = []
    if correction == "MP2020":
        totals, skipped = _corrected(read)
        scheme = "MP2020"
    elif correction == "none":
        totals, scheme = np.array([entry.raw for entry in read]), "none"
    else:
        totals = np.array([entry.raw + entry.correction for entry in read])
        scheme = _scheme(read, where)
    atoms = np.array([sum(entry.composition.values()) for entry in read])
    return PhaseTable(
        [entry.composition for entry in read],
        totals / atoms,
        formation=False,
        correction=scheme,
        data_hashes={} if source is None else {source.name: file_sha256(source)},
        skipped=skipped,
    )


def _read(entry: Mapping[str, Any]) -> _Entry:
    structure = entry.get("structure") or {}
    composition = entry.get("composition")
    if composition is None:
        counts: Counter[str] = Counter()
        for site in structure["sites"]:
            for species in site["species"]:
                counts[species["element"]] += species["occu"]
        composition = counts
    composition = {k: float(v) for k, v in composition.items() if not k.startswith("@") and v}
    if not composition:
        raise ValueError("the composition is empty")
    adjustments = entry.get("energy_adjustments") or []
    parts = [_adjustment(a) for a in adjustments]
    correction = sum(parts) if parts else float(entry.get("correction") or 0.0)
    raw = float(entry["energy"])
    if not (np.isfinite(raw) and np.isfinite(correction)):
        raise ValueError(f"the energy is {raw}, the correction {correction}")
    texts = " ".join(f"{a.get('name', '')} {_class_name(a.get('cls'))}" for a in adjustments)
    scheme = ""
    if abs(correction) > 1e-9:
        scheme = "MP2020" if "2020" in texts else "legacy" if adjustments else "unnamed"
    return _Entry(
        composition,
        raw,
        correction,
        scheme,
        entry.get("parameters") or {},
        entry.get("data") or {},
        structure,
    )


def _adjustment(adjustment: Mapping[str, Any]) -> float:
    """EV of one energy adjustment, whichever of pymatgen's kinds it is."""
    if adjustment.get("value") is not None:
        return float(adjustment["value"])
    per_unit = adjustment.get("adj_per_atom")
    if per_unit is None:
        raise ValueError(f"an energy adjustment without a value: {adjustment.get('name')!r}")
    return float(per_unit) * float(adjustment["n_atoms"])


def _class_name(described: Any) -> str:
    return str(described.get("@class", "")) if isinstance(described, Mapping) else str(described)


def _run_type(entry: _Entry) -> str:
    return str(entry.parameters.get("run_type") or entry.data.get("run_type") or "")


def _check_level(entries: Sequence[_Entry], where: str) -> None:
    """Refuse entries of several functionals."""
    runs = Counter(_run_type(entry) for entry in entries)
    families = {"PBE" if run.upper() in PBE_RUNS else run.upper() for run in runs}
    if len(families) > 1:
        raise InputError(
            f"{where} mix levels of theory: {', '.join(sorted(families))}",
            "Total energies of different functionals can't be on one hull.",
            "Keep the entries of one run_type family (GGA and GGA+U belong together).",
        )


def _scheme(entries: Sequence[_Entry], where: str) -> str:
    """The one correction scheme of the entries."""
    named = Counter(entry.scheme for entry in entries if entry.scheme)
    fix = (
        "Import with correction='MP2020' to correct all raw energies anew, or 'none' to take all "
        "corrections off."
    )
    if len(named) > 1:
        counts = ", ".join(f"{count} {scheme}" for scheme, count in named.most_common())
        raise InputError(f"{where} mix correction schemes: {counts}", fix=fix)
    if not named:
        return "none"
    oxygen = [e for e in entries if "O" in e.composition and len(e.composition) > 1]
    bare = sum(not e.scheme for e in oxygen)
    if bare > MIXED_FRACTION * len(oxygen):
        raise InputError(
            f"{where} mix corrected and uncorrected energies: {bare} of {len(oxygen)} oxygen "
            "compounds have no correction",
            "Energies with and without corrections can't be on one hull.",
            fix,
        )
    scheme = next(iter(named))
    if scheme == "unnamed":
        raise InputError(
            f"{where} carry corrections that do not say their scheme",
            "An energy above hull is meaningful only if both sides share the scheme.",
            fix,
        )
    return scheme


def _corrected(entries: Sequence[_Entry]) -> tuple[np.ndarray, list[str]]:
    """Raw energies with MP2020 corrections, eV of the cell, NaN where pymatgen rejects one."""
    import warnings

    from pymatgen.core import Structure
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    from nucleate.physics.corrections import hubbard_u

    compatibility = MaterialsProject2020Compatibility(check_potcar=False)
    totals, rejected = np.full(len(entries), np.nan), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        for i, entry in enumerate(entries):
            parameters = dict(entry.parameters)
            if "hubbards" not in parameters:
                parameters["hubbards"] = hubbard_u(list(entry.composition))
            if not _run_type(entry):
                parameters["run_type"] = "GGA+U" if parameters["hubbards"] else "GGA"
            parameters.setdefault("run_type", _run_type(entry))
            made: ComputedEntry
            if entry.structure:
                structure = Structure.from_dict(dict(entry.structure))
                made = ComputedStructureEntry(structure, entry.raw, parameters=parameters)
            else:
                made = ComputedEntry(entry.composition, entry.raw, parameters=parameters)
            made.data.update(entry.data)
            processed = compatibility.process_entries([made], on_error="ignore")
            if processed:
                totals[i] = processed[0].energy
            else:
                rejected += 1
    note = f"{rejected} of {len(entries)} entries left out: MaterialsProject2020Compatibility"
    return totals, [note] if rejected else []
