"""Thermodynamic stability: the energy above hull of crystals, by a potential."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import NucleateError, RecipeError
from nucleate.physics.hull import DEFAULT_HULL, Hull
from nucleate.protocols import CostClass, Potential, PotentialResult, Scores, Status

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.core import Structure

    from nucleate.physics.graphs import Cell
    from nucleate.physics.relax import RelaxSettings

LARGEST_ENERGY = 50.0  # eV/atom, beyond which an energy is the potential's failure


class EnergyAboveHull:
    """Energy of a crystal less that of the cheapest mixture of known phases, eV/atom.

    Below the hull it is negative. Evaluation has two halves which may be used apart: the energies
    of the potential (:meth:`energies`), the costly one, and their comparison with the hull
    (:meth:`from_energies`).

    ``Scores.extra`` holds ``energy_per_atom`` and ``formation_energy`` (eV/atom) and
    ``hull_support``, the number of known compounds that compete (a float, as NaN marks absence).

    Args:
        potential: a potential, or the name of one ("chgnet"); a name is loaded at first use.
        hull: a hull, the name of a shipped one, or the path of a hull file.
        relax: False for crystals as they are, True for the default relaxation, or its settings.

    Raises:
        RecipeError: the potential's energies and the hull's have different corrections.
    """

    name = "e_above_hull"
    unit = "eV/atom"

    def __init__(
        self,
        potential: Potential | str = "chgnet",
        hull: Hull | str | Path = DEFAULT_HULL,
        relax: bool | RelaxSettings = False,
    ) -> None:
        from nucleate.physics.potentials import get_potential

        self.potential = get_potential(potential)
        self.hull = hull if isinstance(hull, Hull) else Hull.load(hull)
        self.relax_settings: RelaxSettings | None = None
        if relax:
            from nucleate.physics.relax import RelaxSettings

            self.relax_settings = RelaxSettings() if relax is True else relax
        self.cost = CostClass.RELAXATION if self.relax_settings else CostClass.MODEL
        _check_scales(self.potential, self.hull)

    @property
    def key(self) -> str:
        """Cache key: potential and weights, hull, relaxation."""
        relaxed = "as given"
        if self.relax_settings is not None:
            described = repr(sorted(asdict(self.relax_settings).items()))
            relaxed = "relaxed-" + hashlib.sha256(described.encode()).hexdigest()[:12]
        weights = self.potential.weights_hash[:16]
        return (
            f"{self.name}/1/{self.potential.name}-{weights}/"
            f"{self.hull.name}-{self.hull.hash[:16]}/{relaxed}"
        )

    @property
    def description(self) -> dict[str, Any]:
        """What an energy above hull refers to, for reports."""
        card = self.hull.card
        return {
            "potential": self.potential.name,
            "level_of_theory": self.potential.level_of_theory,
            "correction": self.potential.correction,
            "hull": card.name,
            "hull_potential": card.potential,
            "hull_source": card.source,
            "hull_attribution": card.attribution,
            "hull_hash": self.hull.hash,
            "relaxed": self.relax_settings is not None,
        }

    def evaluate(self, structures: Sequence[Structure | Cell]) -> Scores:
        """Energies above hull of B crystals, order kept."""
        supported = self._supported(structures)
        asked = [s for s, reason in zip(structures, supported, strict=True) if not reason]
        results = iter(self.energies(asked))
        return self.from_energies(
            structures,
            [
                InputError_placeholder(reason) if reason else next(results)
                for reason in supported
            ],
        )
