"""Reference hulls from known phases: tables, entries, or the energies of a potential.

Whatever the source, the phases end in a :class:`PhaseTable` on one energy scale, and
:func:`hull_from_phases` keeps those on the hull, or near it.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import InputError
from nucleate.physics.hull import Hull, HullCard

if TYPE_CHECKING:
    from nucleate.physics.hull import CompositionLike

ON_HULL_TOLERANCE = 1e-8  # eV/atom


@dataclass(frozen=True)
class PhaseTable:
    """Known phases on one energy scale.

    Attributes:
        compositions: M compositions.
        energy_per_atom: (M,) eV/atom: formation energies or total energies.
        formation: which of the two.
        correction: correction scheme that the energies include.
        data_hashes: sha256 of each file that was read.
        skipped: what was left out, with reasons.
    """

    compositions: Sequence[CompositionLike]
    energy_per_atom: np.ndarray
    formation: bool
    correction: str
    data_hashes: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.compositions) != len(self.energy_per_atom):
            raise ValueError(
                f"{len(self.compositions)} compositions, {len(self.energy_per_atom)} energies"
            )


def hull_from_phases(
    phases: PhaseTable,
    card: HullCard,
    references: Mapping[str, float] | None = None,
    fallback: Mapping[str, float] | None = None,
    fallback_source: str = "",
) -> Hull:
    """The hull of a table of phases, without those above ``card.keep_eV_per_atom``.

    Args:
        phases: the known phases.
        card: provenance; the correction must be the phases'.
        references: element -> eV/atom on the energies' scale. If absent, total energies are
            referred to the lowest elemental phase of the table itself.
        fallback: reference energies of elements that the table lacks; each is named on the card.
        fallback_source: what the fallback energies are, for the card.

    Raises:
        InputError: correction schemes are mixed, or an element has no reference.
    """
    if phases.correction != card.correction:
        raise InputError(
            f"the phases of the hull {card.name!r} carry the correction {phases.correction!r}, "
            f"its card says {card.correction!r}",
            "Energies of different correction schemes differ by up to 1 eV/atom.",
            "Correct the energies, or state the right scheme.",
        )
    fractions, elements = _fractions(phases.compositions)
    energies = np.asarray(phases.energy_per_atom, dtype=np.float64)
    finite = np.isfinite(energies)
    fractions, energies = fractions[finite], energies[finite]
    exceptions = dict(card.reference_exceptions)
    if references is not None:
        mu = {symbol: float(references[symbol]) for symbol in references}
    elif phases.formation:
        mu = dict.fromkeys(elements, float("nan"))
    else:
        mu = _lowest_elements(fractions, energies, elements)
        for symbol, energy in (fallback or {}).items():
            if symbol not in mu:
                mu[symbol], exceptions[symbol] = float(energy), fallback_source
    lacking = sorted(set(elements) - set(mu))
    if lacking:
        raise InputError(
            f"no reference energy of {', '.join(lacking)}",
            "Formation energies are counted from the elements.",
            "Add an elemental phase, or pass the reference energies.",
        )
    symbols = _by_atomic_number(mu)
    wide = np.zeros((len(fractions), len(symbols)))
    wide[:, [symbols.index(symbol) for symbol in elements]] = fractions
    mu_array = np.array([mu[symbol] for symbol in symbols])
    e_form = energies if phases.formation else energies - wide @ mu_array
    wide, e_form = _lowest_of_each(wide, e_form)
    card = replace(
        card,
        data_hashes=card.data_hashes | phases.data_hashes,
        reference_exceptions=exceptions,
        date=card.date or datetime.date.today().isoformat(),
    )
    everything = Hull(symbols, wide, e_form, mu_array, card)
    above = e_form - everything.hull_energies(wide)
    keep = above <= card.keep_eV_per_atom + ON_HULL_TOLERANCE
    return Hull(symbols, wide[keep], e_form[keep], mu_array, card)


def read_formation_table(
    path: Path | str,
    *,
    correction: str,
    formula_column: str = "formula",
    energy_column: str = "e_form",
) -> PhaseTable:
    """Formation energies (eV/atom) from a csv or parquet table.

    Args:
        path: the table.
        correction: correction scheme of the energies, as the table cannot tell.
        formula_column: column of chemical formulas.
        energy_column: column of formation energies, eV/atom.

    Raises:
        InputError: the file cannot be read or a column is missing.
    """
    import pandas as pd

    file = Path(path)
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the table {file}", str(error), "Give a csv or parquet file."
        ) from error
    absent = {formula_column, energy_column} - set(table.columns)
    if absent:
        raise InputError(
            f"{file} has no column {', '.join(sorted(absent))}",
            f"Its columns are {', '.join(map(str, table.columns))}.",
            "Name the columns of formulas and formation energies (eV/atom).",
        )
    return PhaseTable(
        table[formula_column].astype(str).tolist(),
        pd.to_numeric(table[energy_column], errors="coerce").to_numpy(dtype=np.float64),
        formation=True,
        correction=correction,
        data_hashes={file.name: sha256(file)},
    )


def sha256(path: Path) -> str:
    """sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fractions(compositions: Sequence[CompositionLike]) -> tuple[np.ndarray, list[str]]:
    """(M, E) atomic fractions and the E elements that occur, by atomic number."""
    from pymatgen.core import Composition

    read = [Composition(c).reduced_composition.get_el_amt_dict() for c in compositions]
    elements = _by_atomic_number({symbol for row in read for symbol in row})
    column = {symbol: i for i, symbol in enumerate(elements)}
    x = np.zeros((len(read), len(elements)))
    for i, row in enumerate(read):
        for symbol, amount in row.items():
            x[i, column[symbol]] = amount
    return x / x.sum(axis=1, keepdims=True), elements


def _by_atomic_number(symbols: Iterable[str]) -> list[str]:
    from pymatgen.core import Element

    return sorted(symbols, key=lambda symbol: Element(symbol).Z)


def _lowest_elements(
    fractions: np.ndarray, energies: np.ndarray, elements: Sequence[str]
) -> dict[str, float]:
    """The lowest energy of each element that has a phase of its own, eV/atom."""
    pure = fractions.max(axis=1) > 1 - 1e-12
    found: dict[str, float] = {}
    for row, energy in zip(fractions[pure], energies[pure], strict=True):
        symbol = elements[int(row.argmax())]
        found[symbol] = min(float(energy), found.get(symbol, np.inf))
    return found


def _lowest_of_each(fractions: np.ndarray, e_form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One phase for each composition, the lowest; elements left out."""
    compound = fractions.max(axis=1) < 1 - 1e-12
    fractions, e_form = fractions[compound], e_form[compound]
    order = np.argsort(e_form, kind="stable")
    _, first = np.unique(np.round(fractions[order], 10), axis=0, return_index=True)
    chosen = np.sort(order[first])
    return fractions[chosen], e_form[chosen]
