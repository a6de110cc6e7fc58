"""Reference hulls from known phases: tables, entries, or the energies of a potential.

Whatever the source, the phases come as a :class:`~nucleate.physics.phases.PhaseTable` on one
energy scale, and :func:`hull_from_phases` keeps those on the hull, or near it.
"""

from __future__ import annotations

import datetime
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import InputError, counted
from nucleate.physics.hull import ISOTOPES, Hull
from nucleate.physics.hull_card import HullCard
from nucleate.physics.phases import PhaseTable

if TYPE_CHECKING:
    from nucleate.physics.hull import CompositionLike
    from nucleate.physics.relax import RelaxSettings
    from nucleate.protocols import Potential

logger = logging.getLogger(__name__)

ON_HULL_TOLERANCE = 1e-8  # eV/atom
PURE = 1 - 1e-12  # atomic fraction of an element, above which a phase is that element


def hull_from_phases(
    phases: PhaseTable,
    card: HullCard,
    references: Mapping[str, float] | None = None,
    fallback: Mapping[str, float] | None = None,
    fallback_source: str = "",
) -> Hull:
    """The hull of a table of phases, without those above ``card.keep_ev_per_atom``.

    Args:
        phases: the known phases.
        card: provenance; the correction must be the phases'.
        references: element -> eV/atom on the energies' scale. If absent, total energies are
            referred to the lowest elemental phase of the table itself.
        fallback: reference energies of elements that the table lacks; each is named on the card.
        fallback_source: what the fallback energies are, for the card.

    Phases with an element that has no reference energy are left out, which is warned of; the card
    says how many.

    Raises:
        InputError: correction schemes are mixed, no phase is left, or no compound where some were
            left out.
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
    exceptions, notes = dict(card.reference_exceptions), list(card.notes)
    if references is not None:
        mu = {symbol: float(energy) for symbol, energy in references.items()}
    elif phases.formation:
        mu = dict.fromkeys(elements, float("nan"))
    else:
        mu = _lowest_elements(fractions, energies, elements)
        for symbol, energy in (fallback or {}).items():
            if symbol not in mu:
                mu[symbol], exceptions[symbol] = float(energy), fallback_source
    lacking = [symbol for symbol in elements if symbol not in mu]
    left_out, fix = "", "Check that the source holds crystals with energies."
    if lacking:
        lacks = (fractions[:, [elements.index(symbol) for symbol in lacking]] > 0).any(axis=1)
        left_out = (
            f"{counted(int(lacks.sum()), 'phase')} of {len(fractions):,} left out, as there is no "
            f"reference energy of {', '.join(lacking)}"
        )
        notes.append(left_out)
        fix = _how_to_mend(references, fallback)
        fractions, energies = fractions[~lacks], energies[~lacks]
    if not len(energies) or (lacking and fractions.max(axis=1).min() > PURE):
        raise InputError(
            f"no {'compound' if len(energies) else 'phase'} is left for the hull {card.name!r}",
            f"{left_out or 'No phase has a finite energy'}.",
            fix,
        )
    if lacking:
        told = "%s; crystals with these elements can't be placed by the hull %s. %s"
        logger.warning(told, left_out, card.name, fix)
    symbols = _by_atomic_number(mu)
    wide = np.zeros((len(fractions), len(symbols)))
    for j, symbol in enumerate(elements):
        if symbol in mu:
            wide[:, symbols.index(symbol)] = fractions[:, j]
    mu_array = np.array([mu[symbol] for symbol in symbols])
    e_form = energies if phases.formation else energies - wide @ mu_array
    wide, e_form = _lowest_of_each(wide, e_form)
    card = replace(
        card,
        data_hashes=card.data_hashes | phases.data_hashes,
        reference_exceptions=exceptions,
        notes=notes,
        date=card.date or datetime.date.today().isoformat(),
    )
    everything = Hull(symbols, wide, e_form, mu_array, card)
    above = e_form - everything.hull_energies(wide)
    keep = above <= card.keep_ev_per_atom + ON_HULL_TOLERANCE
    return Hull(symbols, wide[keep], e_form[keep], mu_array, card)


def _how_to_mend(
    references: Mapping[str, float] | None, fallback: Mapping[str, float] | None
) -> str:
    """Where the reference energies of further elements can come from."""
    if references is not None:
        return "Take references that have these elements, by --references."
    if fallback is None:
        return "Add phases of these elements themselves to the source."
    return (
        "Add crystals of these elements themselves to the source, or lend their energies from a "
        "hull that has them, such as --fallback chgnet."
    )


def build_hull(
    source: str | Path,
    potential: Potential,
    folder: str | Path,
    *,
    name: str,
    description: str = "",
    licence: str = "",
    attribution: str = "",
    notes: Sequence[str] = (),
    relax: RelaxSettings | None = None,
    max_vol_per_atom: float = 60.0,
    max_e_hull: float | None = None,
    keep: float = 0.0,
    chunk_size: int = 500,
    fallback: Hull | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Hull:
    """A hull from the energies that a potential gives the crystals of a data set.

    Chunks of energies are kept in ``folder``; the same call resumes there after an interruption.

    Args:
        source: file, folder or glob pattern of crystals.
        potential: gives the energies; may run in a pool of processes.
        folder: where the energies go, ``energies.csv`` among them when all are done.
        name: name of the hull.
        description: of the data set, for the card; by default its file names.
        licence: licence of the crystals.
        attribution: whom to credit for them.
        notes: limits and remarks for the card.
        relax: settings, if the crystals shall be relaxed first.
        max_vol_per_atom: Å³; emptier cells are left out, unless they are elements.
        max_e_hull: eV/atom; crystals whose column ``e_hull`` says more are left out.
        keep: eV/atom; phases up to this far above the hull are kept.
        chunk_size: crystals in a chunk.
        fallback: a hull on the same energy scale that lends the energies of elements of which the
            data set has no crystal; each is named on the card.
        progress: called with the numbers of crystals done and in all.

    Raises:
        CheckpointError: ``folder`` holds chunks of another data set, potential or setting.
        InputError: the source holds no crystal, or the fallback has another energy scale.
    """
    from nucleate.physics.survey import Selection, survey

    if fallback is not None and fallback.card.correction != potential.correction:
        raise InputError(
            f"the fallback hull {fallback.name!r} has the correction "
            f"{fallback.card.correction!r}, the potential {potential.name!r} "
            f"{potential.correction!r}",
            fix="Choose a fallback on the potential's energy scale, or none.",
        )
    phases = survey(
        source,
        potential,
        folder,
        selection=Selection(max_vol_per_atom, max_e_hull),
        relax=relax,
        chunk_size=chunk_size,
        progress=progress,
    )
    lent: dict[str, float] = {}
    if fallback is not None:
        lent = dict(zip(fallback.elements, fallback.references.tolist(), strict=True))
    card = HullCard(
        name=name,
        potential=potential.name,
        weights_hash=potential.weights_hash,
        level_of_theory=potential.level_of_theory,
        correction=potential.correction,
        source=description or ", ".join(sorted(phases.data_hashes)),
        licence=licence,
        attribution=attribution,
        geometry="as given" if relax is None else f"relaxed to {relax.fmax:g} eV/Å",
        keep_ev_per_atom=keep,
        reference_source=f"lowest elemental crystal of the data set by {potential.name}",
        notes=[*notes, *phases.skipped],
    )
    return hull_from_phases(
        phases,
        card,
        fallback=lent,
        fallback_source="" if fallback is None else f"the hull {fallback.name!r}",
    )


def _fractions(compositions: Sequence[CompositionLike]) -> tuple[np.ndarray, list[str]]:
    """(M, E) atomic fractions and the E elements that occur, by atomic number."""
    from pymatgen.core import Composition

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        read = [Composition(c).get_el_amt_dict() for c in compositions]
    for row in read:
        for isotope, element in ISOTOPES.items():
            if isotope in row:
                row[element] = row.get(element, 0.0) + row.pop(isotope)
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
    pure = fractions.max(axis=1) > PURE
    found: dict[str, float] = {}
    for row, energy in zip(fractions[pure], energies[pure], strict=True):
        symbol = elements[int(row.argmax())]
        found[symbol] = min(float(energy), found.get(symbol, np.inf))
    return found


def _lowest_of_each(fractions: np.ndarray, e_form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One phase for each composition, the lowest; elements left out."""
    compound = fractions.max(axis=1) < PURE
    fractions, e_form = fractions[compound], e_form[compound]
    order = np.argsort(e_form, kind="stable")
    _, first = np.unique(np.round(fractions[order], 10), axis=0, return_index=True)
    chosen = np.sort(order[first])
    return fractions[chosen], e_form[chosen]
