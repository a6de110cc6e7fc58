"""Properties that follow from composition and cell alone.

Atoms are counted once for a whole batch, and what follows is arithmetic with a table of the
elements. Tables hold natural elements: deuterium is no entry of theirs, and neither is a site that
two elements share. Definitions, sources and ranges of validity: docs/properties.md.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nucleate.errors import RecipeError, did_you_mean
from nucleate.properties.element_table import as_table, read_table, shipped_table, table_hash
from nucleate.protocols import CostClass, Scores, Status
from nucleate.structures.elements import ATOMIC_NUMBERS, RADIOACTIVE, SYMBOLS, atomic_numbers
from nucleate.structures.validity import charge_balance

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.core import Structure

TOXIC: frozenset[int] = frozenset(atomic_numbers(["Be", "As", "Cd", "Hg", "Tl", "Pb"]))
"""Atomic numbers of the elements that are toxic in nearly every compound."""

OXIDATION_STATES = ("icsd16", "icsd24", "pymatgen_sp", "smact14", "wiki")
"""SMACT's own sets of oxidation states."""

_GRAM_PER_CM3 = 1.66053906892  # u/Å³ (CODATA 2022)


@dataclass(frozen=True)
class AtomCounts:
    """Atoms of each element in the cells of B crystals.

    Attributes:
        counts: (B, 119) float64, column Z for atomic number Z; zeros where the status is not OK.
        status: B statuses.
        reason: B strings, empty where OK.
    """

    counts: np.ndarray
    status: list[Status]
    reason: list[str]

    @property
    def ok(self) -> np.ndarray:
        """(B,) bool, True where the atoms could be counted and nothing failed since."""
        return np.array([status is Status.OK for status in self.status], dtype=bool)

    def fail(self, rows: np.ndarray, status: Status, reasons: Sequence[str]) -> None:
        """Give crystals that were OK a status and a reason each."""
        for row, reason in zip(rows.tolist(), reasons, strict=True):
            self.status[row], self.reason[row] = status, reason

    def scores(self, value: np.ndarray) -> Scores:
        """Scores of values (B,), those of crystals that failed left out."""
        return Scores(np.where(self.ok, value, np.nan), self.status, self.reason)


def count_atoms(structures: Sequence[Structure]) -> AtomCounts:
    """Atoms of each element of B crystals, order kept.

    Ions count as their element. A shared or partly empty site, deuterium and dummies are
    unsupported, a crystal without atoms is invalid; each with its reason.
    """
    status, reason = [Status.OK] * len(structures), [""] * len(structures)
    cells: list[int] = []
    columns: list[int] = []
    for i, structure in enumerate(structures):
        try:
            numbers = [_atomic_number(site.specie) for site in structure]
        except (AttributeError, TypeError):  # what pymatgen raises for the element of a shared site
            numbers = []
        if not numbers or 0 in numbers:
            status[i], reason[i] = _why_uncounted(structure)
            continue
        cells += [i] * len(numbers)
        columns += numbers
    width = len(SYMBOLS) + 1
    places = np.array(cells, dtype=np.int64) * width + np.array(columns, dtype=np.int64)
    counts = np.bincount(places, minlength=len(structures) * width).astype(np.float64)
    return AtomCounts(counts.reshape(len(structures), width), status, reason)


@lru_cache(maxsize=4096)
def _atomic_number(specie: Any) -> int:
    """Atomic number of an element or ion; 0 for a named isotope or a dummy."""
    return ATOMIC_NUMBERS.get(_name(specie), 0)


def _name(specie: Any) -> str:
    """Name of the element of a species: "D" for deuterium, whose symbol would be that of H."""
    return str(getattr(getattr(specie, "element", specie), "name", specie))


def _why_uncounted(structure: Any) -> tuple[Status, str]:
    try:
        sites = list(structure.sites)
    except AttributeError:
        return Status.INVALID, f"not a crystal: {type(structure).__name__}"
    if not sites:
        return Status.INVALID, "no atoms"
    for i, site in enumerate(sites):
        if not site.is_ordered:
            return Status.UNSUPPORTED, f"disordered: site {i} holds {site.species_string}"
    names = sorted({_name(site.specie) for site in sites if not _atomic_number(site.specie)})
    return Status.UNSUPPORTED, f"no natural element: {', '.join(names)}"


def _symbols(mask: np.ndarray) -> str:
    """Symbols of the elements where a mask (119,) is True."""
    return ", ".join(SYMBOLS[z - 1] for z in np.flatnonzero(mask))


@lru_cache(maxsize=1)
def _atomic_masses() -> np.ndarray:
    """(119,) float64 standard atomic weights, u, indexed by atomic number; 0 at index 0."""
    from pymatgen.core import Element

    return np.array([0.0, *(float(Element(symbol).atomic_mass) for symbol in SYMBOLS)])


def _per_volume(structures: Sequence[Structure], per_atom: np.ndarray) -> Scores:
    """A quantity (119,) of the elements, summed over the atoms of each cell, per Å³."""
    atoms = count_atoms(structures)
    ok = atoms.ok
    volume = np.array([s.volume if ok[i] else np.nan for i, s in enumerate(structures)], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (atoms.counts * per_atom).sum(axis=1) / volume
    flat = np.flatnonzero(ok & ~(np.isfinite(value) & (volume > 0)))
    atoms.fail(flat, Status.INVALID, ["the cell has no volume"] * len(flat))
    return atoms.scores(value)


class Density:
    """Mass density, g/cm³, from standard atomic weights (IUPAC, as pymatgen tabulates them).

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> gold = Structure(Lattice.cubic(4.078), ["Au"] * 4,
        ...                  [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        >>> Density().evaluate([gold]).value.round(1)
        array([19.3])
    """

    name = "density"
    unit = "g/cm^3"
    cost = CostClass.COMPOSITION

    @property
    def key(self) -> str:
        """Cache key; there are no settings."""
        return "density/2"

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Densities of B structures, order kept."""
        return _per_volume(structures, _atomic_masses() * _GRAM_PER_CM3)


class NumberDensity:
    """Atoms per volume, atoms/Å³."""

    name = "number_density"
    unit = "atoms/Å^3"
    cost = CostClass.COMPOSITION

    @property
    def key(self) -> str:
        """Cache key; there are no settings."""
        return "number_density/1"

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Number densities of B structures, order kept."""
        return _per_volume(structures, np.ones(len(SYMBOLS) + 1))


class ElementMean:
    """Mean of a number of the elements, each weighted by its share of the crystal's mass.

    Args:
        table: (119,) float64, the numbers, indexed by atomic number; NaN where there is none. A
            crystal that needs such a number is unsupported, with the elements named.
    """

    name = "element_mean"
    unit = ""
    cost = CostClass.COMPOSITION
    _lacking = "no value"

    def __init__(self, table: np.ndarray) -> None:
        self._table = table

    @property
    def key(self) -> str:
        """Cache key: name and hash of the table."""
        return f"{self.name}/1/{table_hash(self._table)}"

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Means of B structures, order kept."""
        atoms = count_atoms(structures)
        known = np.isfinite(self._table)
        mass = atoms.counts * _atomic_masses()
        with np.errstate(invalid="ignore"):
            mean = (mass * np.where(known, self._table, 0.0)).sum(axis=1) / mass.sum(axis=1)
        lacking = (atoms.counts > 0) & ~known
        rows = np.flatnonzero(lacking.any(axis=1))
        reasons = [f"{self._lacking}: {_symbols(lacking[row])}" for row in rows]
        atoms.fail(rows, Status.UNSUPPORTED, reasons)
        return atoms.scores(mean)


@lru_cache(maxsize=1)
def _herfindahl() -> tuple[np.ndarray, np.ndarray]:
    """Tables of HHI by production and by reserve, from pymatgen."""
    from pymatgen.analysis.hhi import HHIModel

    both = HHIModel().symbol_hhip_hhir
    production, reserve = (as_table({s: pair[i] for s, pair in both.items()}) for i in (0, 1))
    return production, reserve


class HhiProduction(ElementMean):
    """Herfindahl-Hirschman index of the countries that produce the elements; 0 to 10,000.

    Gaultois et al., Chem. Mater. 25, 2911 (2013), the values that pymatgen's HHIModel holds.
    """

    name = "hhi_production"
    _lacking = "no HHI"

    def __init__(self) -> None:
        super().__init__(_herfindahl()[0])


class HhiReserve(ElementMean):
    """Herfindahl-Hirschman index of the countries with the elements' reserves; 0 to 10,000.

    Gaultois et al., Chem. Mater. 25, 2911 (2013), the values that pymatgen's HHIModel holds.
    """

    name = "hhi_reserve"
    _lacking = "no HHI"

    def __init__(self) -> None:
        super().__init__(_herfindahl()[1])


class Price(ElementMean):
    """Price of the elements that a crystal is made of, USD/kg of the crystal.

    Args:
        table: CSV file with the columns ``element`` and ``usd_per_kg``; by default the snapshot
            of July 2025 that ships.

    Raises:
        InputError: the table can't be used.
    """

    name = "price"
    unit = "USD/kg"
    paths: ClassVar[Mapping[str, Container[str]]] = {"table": ()}
    _lacking = "no price"

    def __init__(self, table: str | Path | None = None) -> None:
        super().__init__(
            shipped_table("prices_2025-07.csv", "usd_per_kg")
            if table is None
            else read_table(table, "usd_per_kg")
        )


class LogCrustalAbundance(ElementMean):
    """Decimal logarithm of the mean abundance of a crystal's elements in the crust, log10(ppm).

    The mean is over the elements' shares of the crystal's mass; ppm are mg/kg.
    """

    name = "log_crustal_abundance"
    unit = "log10(ppm)"
    _lacking = "no crustal abundance"

    def __init__(self) -> None:
        super().__init__(shipped_table("crustal_abundance.csv", "mg_per_kg"))

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Logarithms of the means of B structures, order kept."""
        scores = super().evaluate(structures)
        return replace(scores, value=np.log10(scores.value))


class ElementMask:
    """1 if a crystal has allowed elements only, else 0.

    Args:
        exclude_radioactive: Tc, Pm and all elements from Po on are not allowed.
        exclude_toxic: Be, As, Cd, Hg, Tl and Pb are not allowed.
        deny: symbols of further elements that are not allowed.

    Raises:
        RecipeError: ``deny`` is no list, or holds what is no symbol of an element.
    """

    name = "element_mask"
    unit = ""
    cost = CostClass.COMPOSITION

    def __init__(
        self,
        exclude_radioactive: bool = True,
        exclude_toxic: bool = True,
        deny: Sequence[str] = (),
    ) -> None:
        if isinstance(deny, str):
            raise RecipeError(f"deny can't be {deny!r}.", fix=f"Write a list: deny: [{deny}].")
        denied = set(atomic_numbers(deny))
        denied |= RADIOACTIVE if exclude_radioactive else frozenset()
        denied |= TOXIC if exclude_toxic else frozenset()
        self._denied = sorted(denied)

    @property
    def key(self) -> str:
        """Cache key: the elements that are not allowed."""
        denied = as_table({SYMBOLS[z - 1]: 1.0 for z in self._denied})
        return f"{self.name}/1/{table_hash(denied)}"

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """1 or 0 for each of B structures, order kept."""
        atoms = count_atoms(structures)
        allowed = (atoms.counts[:, self._denied] == 0).all(axis=1)
        return atoms.scores(allowed.astype(np.float64))


class ChargeBalance:
    """1 if SMACT finds a charge-neutral set of oxidation states for a composition, else 0.

    The test of :func:`nucleate.structures.validity.charge_balance`, whose settings these are.

    Args:
        alloys: compositions of metals alone pass, as does an element.
        pauling: anions must be more electronegative than cations.
        oxidation_states: one of SMACT's sets, :data:`OXIDATION_STATES`; by default the states that
            SMACT itself takes by default.

    Raises:
        MissingDependencyError: SMACT is not installed.
        RecipeError: no such set of oxidation states.
    """

    name = "charge_balance"
    unit = ""
    cost = CostClass.COMPOSITION

    def __init__(
        self, alloys: bool = True, pauling: bool = True, oxidation_states: str | None = None
    ) -> None:
        charge_balance(())  # that SMACT is absent is to be known before any work
        if oxidation_states is not None and oxidation_states not in OXIDATION_STATES:
            raise RecipeError(
                f"SMACT has no set of oxidation states {oxidation_states!r}.",
                fix=did_you_mean(str(oxidation_states), OXIDATION_STATES),
            )
        self._settings: dict[str, Any] = {
            "alloys": alloys,
            "pauling": pauling,
            "oxidation_states": oxidation_states,
        }

    @property
    def key(self) -> str:
        """Cache key: settings and version of SMACT, whose tables change between versions."""
        settings = "/".join(f"{name}={value}" for name, value in self._settings.items())
        return f"{self.name}/1/smact-{metadata.version('smact')}/{settings}"

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """1 or 0 for each of B structures, order kept."""
        atoms = count_atoms(structures)
        crystals = [s if ok else None for s, ok in zip(structures, atoms.ok, strict=True)]
        verdicts = charge_balance(crystals, **self._settings)
        value = np.array([np.nan if v is None else v for v in verdicts], dtype=np.float64)
        unknown = np.flatnonzero(atoms.ok & np.isnan(value))
        reasons = [f"SMACT lacks one of: {_symbols(atoms.counts[i] > 0)}" for i in unknown]
        atoms.fail(unknown, Status.UNSUPPORTED, reasons)
        return atoms.scores(value)
