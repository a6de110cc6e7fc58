"""Vibrations of crystals: heat capacity and dynamical stability, by a potential and phonopy.

Both are read from the same phonons, which an objective computes once for each crystal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import RecipeError
from nucleate.physics.phonons import Phonons, PhononSettings, phonons, require_phonopy
from nucleate.physics.potentials import get_potential
from nucleate.physics.relax import TIGHT
from nucleate.properties.shared import Shared, described, scores_of
from nucleate.protocols import CostClass, Measurements, Potential, Scores

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.physics.relax import RelaxSettings


class PhononStability:
    """Lowest phonon frequency, THz; a negative one is imaginary, and the crystal would distort.

    Frequencies between -0.1 THz and zero can't be told from zero. ``Scores.extra`` holds
    ``imaginary`` (share of modes below -0.1 THz), ``highest_frequency`` (THz) and
    ``n_displacements`` (supercells whose forces were computed).

    Args:
        potential: a potential, or the name of one ("chgnet").
        relax: True to bring crystals to the potential's minimum first, False to take them as they
            are, or settings of the relaxation, in a recipe as a mapping.
        min_length: Å, shortest distance between an atom of the supercell and its image.
        displacement: Å, by which atoms are displaced.
        mesh: Å, wave vectors are as dense as those of a supercell of this length.

    Raises:
        RecipeError: a setting is unknown or out of range.
        MissingDependencyError: phonopy isn't installed.
    """

    name = "phonon_stability"
    unit = "THz"
    cost = CostClass.RELAXATION

    def __init__(
        self,
        potential: Potential | str = "chgnet",
        relax: bool | RelaxSettings | Mapping[str, Any] = True,
        min_length: float = PhononSettings.min_length,
        displacement: float = PhononSettings.displacement,
        mesh: float = PhononSettings.mesh,
    ) -> None:
        require_phonopy()
        self.potential = get_potential(potential)
        self.settings = PhononSettings(TIGHT.updated(relax), min_length, displacement, mesh)

    @property
    def key(self) -> str:
        """Cache key: potential and weights, settings."""
        return f"{self.name}/2/{described(self.potential, self.settings)}"

    @property
    def measurement(self) -> str:
        """Key of the phonons: potential and weights, settings."""
        return f"phonons/{described(self.potential, self.settings)}"

    def evaluate(
        self, structures: Sequence[Structure | Cell], shared: Measurements | None = None
    ) -> Scores:
        """Values of B crystals, order kept."""
        results = (shared or Shared()).get(
            self.measurement,
            structures,
            lambda crystals: phonons(crystals, self.potential, self.settings),
        )
        return scores_of(results, self._judge, self._columns)

    def _judge(self, result: Phonons) -> tuple[float, str]:
        return result.lowest, ""

    def _columns(self, result: Phonons) -> dict[str, float]:
        return {
            "imaginary": result.imaginary,
            "highest_frequency": float(result.frequencies.max()),
            "n_displacements": float(result.n_displacements),
        }


class HeatCapacity(PhononStability):
    """Heat capacity at constant volume, J/(g K), of harmonic vibrations.

    It belongs to the mass of the very cell whose modes are summed. Imaginary modes have no heat
    capacity: a crystal with more than a few of them is unsupported. ``Scores.extra`` holds
    ``lowest_frequency`` (THz), ``heat_capacity_molar`` (J/(mol K) of atoms) and what
    :class:`PhononStability` gives.

    Args:
        temperature: K.
        max_imaginary: largest share of imaginary modes.
        settings: the others as for :class:`PhononStability`.
    """

    name = "heat_capacity"
    unit = "J/g/K"

    def __init__(
        self,
        temperature: float = 300.0,
        max_imaginary: float = 0.05,
        potential: Potential | str = "chgnet",
        relax: bool | RelaxSettings | Mapping[str, Any] = True,
        min_length: float = PhononSettings.min_length,
        displacement: float = PhononSettings.displacement,
        mesh: float = PhononSettings.mesh,
    ) -> None:
        if not (temperature > 0 and 0 <= max_imaginary <= 1):
            raise RecipeError(
                f"temperature is {temperature} K, max_imaginary {max_imaginary}",
                fix="A temperature is positive, and a share lies between 0 and 1.",
            )
        super().__init__(potential, relax, min_length, displacement, mesh)
        self.temperature, self.max_imaginary = temperature, max_imaginary

    @property
    def key(self) -> str:
        """Cache key: that of the phonons, temperature, tolerance."""
        return f"{super().key}/{self.temperature:g} K/{self.max_imaginary:g}"

    def _judge(self, result: Phonons) -> tuple[float, str]:
        if result.imaginary > self.max_imaginary:
            return np.nan, f"imaginary modes: {result.imaginary:.1%} of all"
        return result.heat_capacity(self.temperature), ""

    def _columns(self, result: Phonons) -> dict[str, float]:
        n_atoms = result.frequencies.shape[1] // 3
        molar = result.heat_capacity(self.temperature) * result.mass / n_atoms
        own = {"lowest_frequency": result.lowest, "heat_capacity_molar": molar}
        return own | super()._columns(result)
