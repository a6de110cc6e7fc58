"""The reference hull that energies above hull are measured against.

A :class:`Hull` holds known phases as compositions and formation energies (eV/atom), the energies
of the elements that formation energies are counted from, and a :class:`HullCard` that says where
all of this comes from. Its energy above hull is pymatgen's
``PhaseDiagram.get_e_above_hull(allow_negative=True)``: the energy of a crystal less that of the
cheapest mixture of the reference phases with its composition, negative where the crystal is below
the hull. No phase diagram is built: see :mod:`nucleate.physics.simplex`.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError
from nucleate.physics.hull_card import DEFAULT_HULL, DERIVED, HullCard, locate, read_card
from nucleate.physics.simplex import Optimum, cheapest_mixture
from nucleate.structures.elements import SYMBOLS
from nucleate.structures.writing import replacing

if TYPE_CHECKING:
    from pymatgen.core import Composition

    CompositionLike = Composition | str | Mapping[str, float] | np.ndarray

CACHED_SYSTEMS = 20_000  # chemical systems whose phase lists are kept, about 1 kB each
CHUNK_DOUBLES = 2_000_000  # size of the largest array of a batch of linear programmes
ISOTOPES = {"D": "H", "T": "H"}


class Hull:
    """Known phases of a set of elements, for fast energies above hull.

    Args:
        elements: E symbols, the columns of ``fractions``.
        fractions: (M, E) atomic fractions of the compounds; the elements need not be listed.
        formation_energies: (M,) eV/atom.
        references: (E,) eV/atom, energy of each element on the potential's scale; NaN where
            unknown (then only formation energies can be compared with this hull).
        card: provenance.
    """

    def __init__(
        self,
        elements: Sequence[str],
        fractions: np.ndarray,
        formation_energies: np.ndarray,
        references: np.ndarray,
        card: HullCard,
    ) -> None:
        n = len(elements)
        self.elements = tuple(elements)
        self.card = card
        self.references = np.asarray(references, dtype=np.float64)
        compounds = np.asarray(fractions, dtype=np.float64).reshape(-1, n)
        energies = np.asarray(formation_energies, dtype=np.float64)
        if len(compounds) != len(energies) or len(self.references) != n:
            raise ValueError(f"{len(compounds)} compositions, {len(energies)} energies")
        if not (np.isfinite(compounds).all() and np.isfinite(energies).all()):
            raise ValueError("compositions and formation energies must be finite")
        self._fractions = np.concatenate([np.eye(n), compounds])
        self._energies = np.concatenate([np.zeros(n), energies])
        self._column = {symbol: i for i, symbol in enumerate(self.elements)}
        self._column |= {d: self._column[h] for d, h in ISOTOPES.items() if h in self._column}
        self._systems: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        """Number of phases, the elements included."""
        return len(self._energies)

    def __repr__(self) -> str:
        c = self.card
        return f"Hull({c.name!r}, {len(self)} phases, {len(self.elements)} elements, {c.potential})"

    @property
    def name(self) -> str:
        """The card's short name."""
        return self.card.name

    @property
    def phase_fractions(self) -> np.ndarray:
        """(M + E, E) atomic fractions of all phases, the E elements first."""
        return self._fractions

    @property
    def phase_energies(self) -> np.ndarray:
        """(M + E,) formation energies, eV/atom, zero for the elements."""
        return self._energies

    @cached_property
    def hash(self) -> str:
        """sha256 of elements, compositions, energies and correction: what the values depend on."""
        digest = hashlib.sha256(",".join((*self.elements, self.card.correction)).encode())
        for array in (self._fractions, self._energies, self.references):
            digest.update(np.ascontiguousarray(np.round(array, 9) + 0.0).tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------ compositions

    def fractions(self, compositions: Sequence[CompositionLike]) -> tuple[np.ndarray, list[str]]:
        """Atomic fractions over the hull's elements.

        Args:
            compositions: B pymatgen compositions, formulas, mappings symbol -> amount, or integer
                arrays of the atomic numbers of a cell's atoms.

        Returns:
            (B, E) float64, rows summing to 1 (NaN where there is a reason), and B reasons, empty
            where the composition is covered.
        """
        x = np.zeros((len(compositions), len(self.elements)))
        reasons = [""] * len(compositions)
        for i, composition in enumerate(compositions):
            lacking = []
            try:
                amounts = _amounts(composition)
            except ValueError as error:
                reasons[i] = f"cannot read the composition {composition!r}: {error}"
                continue
            for symbol, amount in amounts:
                column = self._column.get(symbol)
                if column is None:
                    lacking.append(symbol)
                else:
                    x[i, column] += amount
            if lacking:
                reasons[i] = f"the hull {self.name!r} lacks {', '.join(sorted(lacking))}"
        total = x.sum(axis=1)
        for i in np.flatnonzero(~(total > 0)).tolist():
            reasons[i] = reasons[i] or "the composition is empty"
        bad = np.array([bool(reason) for reason in reasons], dtype=bool)
        x[bad] = np.nan
        x[~bad] /= total[~bad, None]
        return x, reasons

    def support(self, compositions: Sequence[CompositionLike]) -> np.ndarray:
        """Number of known compounds that compete with each composition.

        A composition with few has a hull with holes: it looks stable because nobody has looked,
        not because it is.

        Returns:
            (B,) int64: reference phases, other than the elements, made of no other elements than
            the composition's; -1 where the composition is not covered.
        """
        return self.support_of(self.fractions(compositions)[0])

    def support_of(self, fractions: np.ndarray) -> np.ndarray:
        """:meth:`support` for (B, E) atomic fractions; -1 for rows of NaN."""
        counts = np.full(len(fractions), -1, dtype=np.int64)
        for i in np.flatnonzero(np.isfinite(fractions).all(axis=1)):
            system = tuple(np.flatnonzero(fractions[i]).tolist())
            counts[i] = len(self._phases_of(system)) - len(system)
        return counts

    # ------------------------------------------------------------------ energies

    def formation_energy(
        self, compositions: Sequence[CompositionLike], energies_per_atom: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """Energies less those of the elements; (B,) eV/atom, and B reasons."""
        x, reasons = self.fractions(compositions)
        return self._formation(x, reasons, energies_per_atom)

    def e_above_hull(
        self,
        compositions: Sequence[CompositionLike],
        energies_per_atom: np.ndarray,
        *,
        formation: bool = False,
    ) -> tuple[np.ndarray, list[str]]:
        """Energy above hull, negative below it.

        Args:
            compositions: B compositions.
            energies_per_atom: (B,) eV/atom, total energies on the potential's scale, or
                formation energies with ``formation=True``.
            formation: whether the energies already are formation energies.

        Returns:
            (B,) float64 eV/atom, NaN where there is a reason, and B reasons, empty where fine.
        """
        x, reasons = self.fractions(compositions)
        if formation:
            e_form = np.array(energies_per_atom, dtype=np.float64)
            for i in np.flatnonzero(~np.isfinite(e_form)):
                reasons[i] = reasons[i] or f"the energy is {e_form[i]}"
        else:
            e_form, reasons = self._formation(x, reasons, energies_per_atom)
        ok = np.flatnonzero([not reason for reason in reasons])
        values = np.full(len(reasons), np.nan)
        hull = self.hull_energies(x[ok])
        values[ok] = e_form[ok] - hull
        for i in ok[np.isnan(hull)]:
            reasons[i] = "the linear programme for the hull energy did not converge"
        return values, reasons

    def hull_energies(self, fractions: np.ndarray) -> np.ndarray:
        """Formation energy of the hull at each composition.

        Args:
            fractions: (B, E) atomic fractions over :attr:`elements`, rows summing to 1.

        Returns:
            (B,) eV/atom.
        """
        energy = np.full(len(fractions), np.nan)
        for rows, _, optimum in self._solve(fractions):
            energy[rows] = optimum.energy
        return energy

    def decomposition(self, composition: CompositionLike) -> dict[str, float]:
        """The mixture of reference phases that the composition decomposes into.

        Returns:
            reduced formula -> fraction of the atoms, largest first.

        Raises:
            InputError: an element is not in the hull.
        """
        x, reasons = self.fractions([composition])
        if reasons[0]:
            raise InputError(reasons[0], fix="Use a hull that covers this element.")
        mixture: dict[str, float] = {}
        for _, phases, optimum in self._solve(x):
            for p, weight in zip(optimum.phases[0], optimum.weights[0], strict=True):
                if weight > 1e-9:
                    formula = self.phase_formula(int(phases[0][p]))
                    mixture[formula] = mixture.get(formula, 0.0) + float(weight)
        return dict(sorted(mixture.items(), key=lambda item: -item[1]))

    def phase_composition(self, index: int) -> dict[str, int]:
        """Symbols of one phase with their smallest integer amounts."""
        columns, amounts = _integers(self._fractions[index])
        return {self.elements[j]: int(n) for j, n in zip(columns, amounts, strict=True)}

    def phase_formula(self, index: int) -> str:
        """Reduced formula of one phase."""
        from pymatgen.core import Composition

        return Composition(self.phase_composition(index)).reduced_formula

    def forget(self) -> None:
        """Drop the chemical systems cached so far."""
        self._systems.clear()

    def _formation(
        self, x: np.ndarray, reasons: list[str], energies_per_atom: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        energies = np.asarray(energies_per_atom, dtype=np.float64)
        if energies.shape != (len(x),):
            raise ValueError(f"{len(x)} compositions, energies of shape {energies.shape}")
        known = np.isfinite(self.references)
        e_form = energies - x @ np.where(known, self.references, 0.0)
        reasons = list(reasons)
        for i in np.flatnonzero(~np.isfinite(energies)):
            reasons[i] = reasons[i] or f"the energy is {energies[i]}"
        for i in np.flatnonzero((x[:, ~known] > 0).any(axis=1)):
            unknown = [s for s, k, a in zip(self.elements, known, x[i], strict=True) if a and not k]
            reasons[i] = reasons[i] or (
                f"the hull {self.name!r} has no reference energy of {', '.join(unknown)}: only "
                "formation energies can be compared with it"
            )
        e_form[[bool(reason) for reason in reasons]] = np.nan
        return e_form, reasons

    def _phases_of(self, system: tuple[int, ...]) -> np.ndarray:
        """Indices of the phases within a chemical system (sorted columns), its elements first."""
        found = self._systems.get(system)
        if found is not None:
            self._systems.move_to_end(system)
            return found
        by_system = self._by_system
        if len(system) <= 12:
            subsets = (s for r in range(1, len(system) + 1) for s in combinations(system, r))
            parts = [by_system[s] for s in subsets if s in by_system]
        else:
            whole = set(system)
            parts = [phases for s, phases in by_system.items() if whole.issuperset(s)]
        phases = np.concatenate([np.array(system, dtype=np.int32), *parts])
        self._systems[system] = phases
        if len(self._systems) > CACHED_SYSTEMS:
            self._systems.popitem(last=False)
        return phases

    @cached_property
    def _by_system(self) -> dict[tuple[int, ...], np.ndarray]:
        """Sorted element columns -> indices of the compounds of exactly these elements."""
        groups: dict[tuple[int, ...], list[int]] = {}
        n = len(self.elements)
        rows, columns = np.nonzero(self._fractions[n:])
        starts = np.searchsorted(rows, np.arange(len(self._fractions) - n + 1))
        listed = columns.tolist()
        for i in range(len(starts) - 1):
            groups.setdefault(tuple(listed[starts[i] : starts[i + 1]]), []).append(i + n)
        return {system: np.array(phases, dtype=np.int32) for system, phases in groups.items()}

    def _solve(self, fractions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Optimum]]:
        """Solve (B, E) compositions in batches of equal numbers of elements.

        Yields:
            the (b,) rows of a batch, the (b, P) phases that compete in each, and the solutions,
            whose ``phases`` index the second.
        """
        finite = np.isfinite(fractions).all(axis=1)
        systems = [tuple(np.flatnonzero(row).tolist()) for row in fractions]
        by_size: dict[int, list[int]] = {}
        for i in np.flatnonzero(finite).tolist():
            by_size.setdefault(len(systems[i]), []).append(i)
        for k, members in by_size.items():
            phases = {i: self._phases_of(systems[i]) for i in members}
            members.sort(key=lambda i, phases=phases: len(phases[i]))  # type: ignore[misc]
            while members:
                widest = len(phases[members[0]])
                count = 1
                while count < len(members):
                    widest = len(phases[members[count]])
                    if (count + 1) * widest * k > CHUNK_DOUBLES:
                        break
                    count += 1
                rows, members = np.array(members[:count]), members[count:]
                columns = np.array([systems[i] for i in rows])
                listed = _padded([phases[i] for i in rows.tolist()])
                a = self._fractions[listed[:, :, None], columns[:, None, :]]
                e = np.where(listed >= 0, self._energies[listed], np.inf)
                x = np.take_along_axis(fractions[rows], columns, axis=1)
                yield rows, listed, cheapest_mixture(a, e, x)

    # ------------------------------------------------------------------ files

    def save(self, path: Path | str) -> Path:
        """Write ``<path>.safetensors`` and its card ``<path>.json``; returns the former."""
        from safetensors.numpy import save

        target = Path(path).with_suffix(".safetensors")
        n = len(self.elements)
        counts = [_integers(row) for row in self._fractions[n:]]
        tensors: dict[str, np.ndarray] = {
            "references": self.references,
            "n_elements": np.array([len(c[0]) for c in counts], dtype=np.uint8),
            "columns": _joined([c[0] for c in counts], np.uint8),
            "amounts": _joined([c[1] for c in counts], np.uint16),
            "formation_energies": self._energies[n:],
        }
        data = save(tensors, metadata={"elements": ",".join(self.elements)})
        card = asdict(self.card) | {
            "phases": len(self),
            "elements": list(self.elements),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        with replacing(target, "wb") as file:
            file.write(data)
        with replacing(target.with_suffix(".json")) as file:
            file.write(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        return target

    @classmethod
    def load(cls, name_or_path: str | Path = DEFAULT_HULL) -> Hull:
        """Open a shipped hull by name, or a hull file.

        Raises:
            InputError: no such hull, or the file is truncated, foreign or without its card.
        """
        path = locate(name_or_path)
        card = read_card(path)
        data = path.read_bytes()
        try:
            if hashlib.sha256(data).hexdigest() != card["sha256"]:
                raise ValueError("it is not the file that its card describes (sha256 differs)")
            return cls._decode(data, card)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"cannot read the hull {path}",
                f"{error}; the file is truncated or not a hull",
                "Restore the file and its .json card, or make it again with 'nucleate hull build'.",
            ) from error

    @classmethod
    def _decode(cls, data: bytes, card: dict[str, Any]) -> Hull:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        elements = card["elements"]
        provenance = HullCard(**{k: v for k, v in card.items() if k not in DERIVED})
        n_elements = tensors["n_elements"].astype(np.int64)
        rows = np.repeat(np.arange(len(n_elements)), n_elements)
        fractions = np.zeros((len(n_elements), len(elements)))
        fractions[rows, tensors["columns"]] = tensors["amounts"]
        fractions /= fractions.sum(axis=1, keepdims=True)
        return cls(
            elements,
            fractions,
            tensors["formation_energies"],
            tensors["references"],
            provenance,
        )


def _amounts(composition: CompositionLike) -> list[tuple[str, float]]:
    """(symbol, amount) pairs; ValueError if a formula cannot be read."""
    if isinstance(composition, np.ndarray):
        numbers, counts = np.unique(composition, return_counts=True)
        if len(numbers) and not 1 <= numbers[0] <= numbers[-1] <= len(SYMBOLS):
            raise ValueError("atomic numbers lie between 1 and 118")
        return [(SYMBOLS[z - 1], float(n)) for z, n in zip(numbers, counts, strict=True)]
    if isinstance(composition, str):
        from pymatgen.core import Composition

        composition = Composition(composition)
    return [(str(getattr(k, "symbol", k)), float(v)) for k, v in composition.items() if v]


def _padded(lists: list[np.ndarray]) -> np.ndarray:
    """(b, P) int64, the lists one below the other, -1 where they end."""
    lengths = np.array([len(entries) for entries in lists])
    padded = np.full((len(lists), int(lengths.max())), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(lists)
    return padded


def _integers(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and smallest integer amounts of a row of atomic fractions."""
    columns = np.flatnonzero(row)
    relative = row[columns] / row[columns].min()
    for smallest in range(1, 2001):
        amounts = np.rint(relative * smallest)
        if np.abs(amounts - relative * smallest).max() < 1e-6 * smallest:
            return columns, amounts.astype(np.int64)
    raise ValueError(f"not a stoichiometric composition: {row[columns]}")


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    joined = np.concatenate([np.zeros(0, dtype=np.int64), *arrays])
    if len(joined) and joined.max() > np.iinfo(dtype).max:
        raise ValueError(f"an amount of {joined.max()} does not fit the file format")
    return joined.astype(dtype)
