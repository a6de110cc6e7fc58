"""A reference hull from a file of others: formation energies in a table, or computed entries."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nucleate.errors import InputError, RecipeError
from nucleate.physics.entries import read_entries
from nucleate.physics.hull import Hull
from nucleate.physics.hull_build import hull_from_phases
from nucleate.physics.hull_card import HullCard
from nucleate.physics.phases import PhaseTable, read_formation_table

TABLES = (".csv", ".parquet")


def import_hull(
    source: str | Path,
    *,
    name: str,
    kind: Literal["auto", "table", "entries"] = "auto",
    correction: str | None = None,
    references: str | Path | None = None,
    formula_column: str = "formula",
    energy_column: str = "e_form",
    level_of_theory: str = "PBE(+U)",
    description: str = "",
    licence: str = "",
    attribution: str = "",
    keep: float = 0.0,
) -> Hull:
    """Read a hull from formation energies or from entries of pymatgen's kind.

    Args:
        source: a table (.csv, .parquet), or a JSON file of entries (plain, .gz or .bz2).
        name: name of the hull.
        kind: what the source is; by its extension if "auto".
        correction: scheme that the energies include ("MP2020", "none"). A table must be told;
            entries say themselves, and are corrected anew, or stripped, if told.
        references: a hull, by name or path, that lends a table the energies of the elements; it
            must be on the scale of the potentials that shall be compared with the new one.
        formula_column: of a table.
        energy_column: of a table, eV/atom.
        level_of_theory: of the energies.
        description: of the data, for the card; the file's name by default.
        licence: of the data.
        attribution: whom to credit.
        keep: eV/atom; phases up to this far above the hull are kept.

    Raises:
        InputError: the file can't be read, or its energies can't be on one hull.
        RecipeError: a table without a correction scheme, or references where none are used.
    """
    file = Path(source)
    if kind == "auto":
        kind = "table" if file.suffix.lower() in TABLES else "entries"
    lent: dict[str, float] | None = None
    phases: PhaseTable
    if kind == "table":
        if correction is None:
            raise RecipeError(
                f"{file} doesn't tell which corrections its energies include.",
                "Energies of different schemes differ by up to 1 eV/atom.",
                "Say it, such as --correction MP2020, or none.",
            )
        phases = read_formation_table(
            file,
            correction=correction,
            formula_column=formula_column,
            energy_column=energy_column,
        )
        if references is not None:
            lender = Hull.load(references)
            if lender.card.correction != correction:
                raise InputError(
                    f"the hull {lender.name!r} has the correction {lender.card.correction!r}, the "
                    f"table {correction!r}",
                    fix="Lend the elements from a hull on the table's scale.",
                )
            lent = dict(zip(lender.elements, lender.references.tolist(), strict=True))
    else:
        if references is not None:
            raise RecipeError(
                "Entries bring the energies of the elements themselves.",
                fix="Leave out references.",
            )
        phases = read_entries(file, correction=correction)
    card = HullCard(
        name=name,
        potential="DFT",
        level_of_theory=level_of_theory,
        correction=phases.correction,
        source=description or file.name,
        licence=licence,
        attribution=attribution,
        keep_ev_per_atom=keep,
        reference_source=f"the hull {references}" if references else "the data themselves",
        notes=list(phases.skipped),
    )
    return hull_from_phases(phases, card, references=lent)
