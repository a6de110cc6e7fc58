"""Thermodynamic stability: the energy above hull of crystals, by a potential."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nucleate.errors import NucleateError, RecipeError
from nucleate.physics.hull import DEFAULT_HULL, Hull
from nucleate.physics.hull_card import SHIPPED
from nucleate.properties.shared import Shared, settings_digest
from nucleate.protocols import (
    CostClass,
    Measurements,
    Potential,
    PotentialResult,
    Scores,
    Status,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.physics.relax import Relaxation, RelaxSettings

    EnergyResult = PotentialResult | Relaxation | Exception

LARGEST_ENERGY = 50.0  # eV/atom, beyond which an energy is the potential's failure
CORRECTED_LEVEL = "PBE(+U)"  # level of theory that the MP2020 corrections were fitted to


class EnergyAboveHull:
    """Energy of a crystal less that of the cheapest mixture of known phases, eV/atom.

    Below the hull it is negative. Evaluation has two halves which may be used apart: the energies
    of the potential (:meth:`energies`), the costly one, and their comparison with the hull
    (:meth:`from_energies`).

    ``Scores.extra`` holds ``energy_per_atom`` and ``formation_energy`` (eV/atom) and
    ``hull_support``, the number of known compounds that compete: phases of the hull of two and
    more elements, all of them the crystal's (a float, as NaN marks absence).

    Args:
        potential: a potential, the name of one ("chgnet"), or a mapping of name and settings.
        hull: a hull, the name of a shipped one, or the path of a hull file.
        relax: False for crystals as they are, True for the default relaxation, or its settings,
            in a recipe as a mapping. A relaxation that has not converged within its steps
            counts with its last energy.
        correct: add the MP2020 corrections to the energies of a potential that imitates raw
            PBE(+U) with the Materials Project's settings, :data:`CORRECTED_LEVEL`.

    Raises:
        RecipeError: the potential's energies and the hull's have different corrections, or the
            corrections were not made for the potential's level of theory.
    """

    name = "e_above_hull"
    unit = "eV/atom"
    paths: ClassVar[Mapping[str, Container[str]]] = {"hull": SHIPPED}

    def __init__(
        self,
        potential: Potential | str | Mapping[str, Any] = "chgnet",
        hull: Hull | str | Path = DEFAULT_HULL,
        relax: bool | RelaxSettings | Mapping[str, Any] = False,
        correct: bool = False,
    ) -> None:
        from nucleate.physics.potentials import get_potential
        from nucleate.physics.relax import RelaxSettings

        self.potential = get_potential(potential)
        self.hull = hull if isinstance(hull, Hull) else Hull.load(hull)
        self.relax_settings = RelaxSettings().updated(relax)
        self.cost = CostClass.RELAXATION if self.relax_settings else CostClass.MODEL
        self.correct = correct
        _check_scales(self.potential, self.hull, correct)

    @property
    def key(self) -> str:
        """Cache key: potential and weights, hull, relaxation."""
        potential, relaxed = self._energy
        return (
            f"{self.name}/1/{potential}/{self.hull.name}-{self.hull.hash[:16]}/{relaxed}"
            f"{'/corrected' if self.correct else ''}"
        )

    @property
    def measurement(self) -> str:
        """Key of the energies: potential and weights, relaxation, whatever the hull."""
        return "energy/{}/{}".format(*self._energy)

    @property
    def _energy(self) -> tuple[str, str]:
        """What an energy depends on: potential and relaxation."""
        relaxed = "as given"
        if self.relax_settings is not None:
            relaxed = f"relaxed-{settings_digest(self.relax_settings)}"
        return f"{self.potential.name}-{self.potential.weights_hash[:16]}", relaxed

    @property
    def description(self) -> dict[str, Any]:
        """What an energy above hull refers to, for reports."""
        card = self.hull.card
        return {
            "potential": self.potential.name,
            "level_of_theory": self.potential.level_of_theory,
            "correction": self.hull.card.correction,
            "hull": card.name,
            "hull_potential": card.potential,
            "hull_source": card.source,
            "hull_attribution": card.attribution,
            "hull_hash": self.hull.hash,
            "relaxed": self.relax_settings is not None,
        }

    def evaluate(
        self, structures: Sequence[Structure | Cell], shared: Measurements | None = None
    ) -> Scores:
        """Energies above hull of B crystals, order kept.

        A crystal with an element that the hull lacks is unsupported, and its energy is not asked
        for; one that the potential cannot evaluate has failed. Each has its reason.
        """
        fractions, unsupported = self._fractions(structures)
        asked = [i for i, (status, _) in enumerate(unsupported) if status is Status.OK]
        results: list[EnergyResult | None] = [None] * len(structures)
        energies = (shared or Shared()).get(
            self.measurement, [structures[i] for i in asked], self.energies
        )
        for i, result in zip(asked, energies, strict=True):
            results[i] = result
        return self._scores(structures, fractions, unsupported, results)

    def energies(self, structures: Sequence[Structure | Cell]) -> Sequence[EnergyResult]:
        """The potential's half: one result for each crystal, relaxed if the property says so."""
        if not len(structures):
            return []
        if self.relax_settings is None:
            return self.potential.evaluate(structures)  # type: ignore[arg-type]  # cells do as well
        from nucleate.execution.local import relax_anywhere

        return relax_anywhere(structures, self.potential, self.relax_settings)

    def from_energies(
        self, structures: Sequence[Structure | Cell], results: Sequence[EnergyResult]
    ) -> Scores:
        """The hull's half, for energies that were computed elsewhere.

        Args:
            structures: B crystals.
            results: for each the potential's result or relaxation, or the exception in its place.
        """
        if len(results) != len(structures):
            raise ValueError(f"{len(structures)} structures, {len(results)} results")
        fractions, unsupported = self._fractions(structures)
        return self._scores(structures, fractions, unsupported, results)

    def _fractions(
        self, structures: Sequence[Structure | Cell]
    ) -> tuple[np.ndarray, list[tuple[Status, str]]]:
        """(B, E) atomic fractions over the hull's elements, and what is wrong with each crystal."""
        from nucleate.physics.cells import as_cell

        numbers: list[np.ndarray] = []
        invalid: dict[int, str] = {}
        for i, structure in enumerate(structures):
            try:
                numbers.append(as_cell(structure).numbers)
            except (NucleateError, AttributeError, ValueError) as error:
                numbers.append(np.zeros(0, dtype=np.int64))
                invalid[i] = str(error).splitlines()[0]
        fractions, reasons = self.hull.fractions(numbers)
        return fractions, [
            (Status.INVALID, invalid[i])
            if i in invalid
            else ((Status.UNSUPPORTED, reason) if reason else (Status.OK, ""))
            for i, reason in enumerate(reasons)
        ]

    def _scores(
        self,
        structures: Sequence[Structure | Cell],
        fractions: np.ndarray,
        states: list[tuple[Status, str]],
        results: Sequence[EnergyResult | None],
    ) -> Scores:
        energy = np.full(len(structures), np.nan)
        states = list(states)
        for i, result in enumerate(results):
            if states[i][0] is Status.OK:
                energy[i], states[i] = _energy(result)
        if self.correct:
            self._add_corrections(structures, energy, states)
        energy[[status is not Status.OK for status, _ in states]] = np.nan
        formation = energy - fractions @ self.hull.references
        ok = np.flatnonzero(np.isfinite(formation))
        value = np.full(len(structures), np.nan)
        value[ok] = formation[ok] - self.hull.hull_energies(fractions[ok])
        for i in np.flatnonzero(np.isnan(value)).tolist():
            if states[i][0] is Status.OK:
                states[i] = (Status.FAILED, "the energy of the hull could not be found")
        support = self.hull.support_of(fractions).astype(np.float64)
        support[support < 0] = np.nan
        extra = {
            "energy_per_atom": energy,
            "formation_energy": formation,
            "hull_support": support,
        }
        return Scores(value, [s for s, _ in states], [reason for _, reason in states], extra)

    def _add_corrections(
        self,
        structures: Sequence[Structure | Cell],
        energy: np.ndarray,
        states: list[tuple[Status, str]],
    ) -> None:
        """Bring raw energies to the MP2020 scale, in place."""
        from nucleate.physics.corrections import mp2020_corrections

        rows = [i for i, (status, _) in enumerate(states) if status is Status.OK]
        corrections, reasons = mp2020_corrections([structures[i] for i in rows])
        for i, correction, reason in zip(rows, corrections, reasons, strict=True):
            energy[i] += correction
            if reason:
                states[i] = (Status.UNSUPPORTED, reason)


class FormationEnergy(EnergyAboveHull):
    """Energy of a crystal less that of its elements, eV/atom.

    The elements' energies are those of the hull, whose card says what they are; settings, energies
    and failures are those of :class:`EnergyAboveHull`, which gives the same number as a column.
    ``Scores.extra`` holds ``energy_per_atom``, ``e_above_hull`` (eV/atom) and ``hull_support``.
    """

    name = "formation_energy"

    @property
    def description(self) -> dict[str, Any]:
        """What a formation energy refers to, for reports."""
        return {**super().description, "references": self.hull.card.reference_source}

    def _scores(
        self,
        structures: Sequence[Structure | Cell],
        fractions: np.ndarray,
        states: list[tuple[Status, str]],
        results: Sequence[EnergyResult | None],
    ) -> Scores:
        scores = super()._scores(structures, fractions, states, results)
        extra = {**scores.extra, "e_above_hull": scores.value}
        value = np.where(scores.ok, extra.pop("formation_energy"), np.nan)
        return Scores(value, scores.status, scores.reason, extra)


def _energy(result: EnergyResult | None) -> tuple[float, tuple[Status, str]]:
    """Energy per atom, eV/atom, and status with reason."""
    from nucleate.physics.potentials import status_of

    if isinstance(result, Exception):
        reason = (str(result) or type(result).__name__).splitlines()[0]
        return np.nan, (status_of(result), reason)
    if result is None:
        return np.nan, (Status.FAILED, "there is no energy")
    if isinstance(result, PotentialResult):
        energy = float(result.energy)
    else:
        if (status := result.status.verdict) is not Status.OK:
            return np.nan, (status, f"relaxation {result.status.value}: {result.reason}")
        energy = float(result.energy_after)
    if not np.isfinite(energy):
        return energy, (Status.FAILED, f"the potential gave the energy {energy}")
    if abs(energy) > LARGEST_ENERGY:
        return energy, (
            Status.FAILED,
            f"the potential gave {energy:.4g} eV/atom, beyond {LARGEST_ENERGY:g} eV/atom",
        )
    return energy, (Status.OK, "")


def _check_scales(potential: Potential, hull: Hull, correct: bool) -> None:
    """Energies can be subtracted only on one scale."""
    scale = potential.correction
    if correct:
        if scale != "none":
            raise RecipeError(
                f"correct is set, but the energies of {potential.name} carry {scale} corrections",
                fix="Leave 'correct' out.",
            )
        if potential.level_of_theory != CORRECTED_LEVEL:
            raise RecipeError(
                f"correct is set, but the energies of {potential.name} are those of the level of "
                f"theory {potential.level_of_theory!r}",
                f"The MP2020 corrections were fitted to {CORRECTED_LEVEL} with the Materials "
                "Project's settings, and would be wrong by tenths of an eV/atom for others.",
                "Make a hull with the potential itself: nucleate hull build. If the energies are "
                f"of that level, say so: 'level_of_theory: {CORRECTED_LEVEL}'.",
            )
        scale = "MP2020"
    if scale != hull.card.correction:
        raise RecipeError(
            f"the potential {potential.name!r} gives energies with the correction {scale!r}, the "
            f"hull {hull.name!r} holds {hull.card.correction!r}",
            "Energies of different correction schemes differ by up to 1 eV/atom.",
            "Set 'correct: true' for a potential of raw PBE(+U) energies with an MP2020 hull, or "
            "make a hull with the potential itself: nucleate hull build.",
        )
    if not np.isfinite(hull.references).all():
        raise RecipeError(
            f"the hull {hull.name!r} holds formation energies but no energies of the elements",
            "The energies of a potential can't be compared with it.",
            "Import the table again with reference energies.",
        )
