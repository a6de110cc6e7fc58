"""Magnetisation from the moments that a potential gives to atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import RecipeError
from nucleate.physics.cells import as_cell
from nucleate.physics.potentials import get_potential, status_of
from nucleate.protocols import CostClass, Potential, PotentialResult, Scores, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell


class MagneticDensity:
    """Sum of the sizes of all atomic moments over the volume of the cell, μ_B/Å³.

    CHGNet gives the size of each moment, not its direction, so this is the magnetisation of the
    ferromagnetic order: an upper bound, reached where all moments are parallel. Antiferromagnets
    and ferrimagnets get more than they have.

    ``Scores.extra`` holds ``magnetic_moment_per_atom``, μ_B.

    Args:
        potential: a potential that gives moments, its name, or a mapping of name and settings.
    """

    name = "magnetic_density"
    unit = "mu_B/A^3"
    cost = CostClass.MODEL

    def __init__(self, potential: Potential | str | Mapping[str, Any] = "chgnet") -> None:
        self.potential = get_potential(potential)

    @property
    def key(self) -> str:
        """Cache key: the potential and its weights."""
        return f"{self.name}/1/{self.potential.name}-{self.potential.weights_hash[:16]}"

    @property
    def description(self) -> dict[str, Any]:
        """What the value refers to, for reports."""
        return {
            "potential": self.potential.name,
            "level_of_theory": self.potential.level_of_theory,
            "order": "ferromagnetic",
        }

    def evaluate(self, structures: Sequence[Structure | Cell]) -> Scores:
        """Magnetic densities of B crystals, order kept.

        Raises:
            RecipeError: the potential gives no moments.
        """
        results = self.potential.evaluate(structures, magmoms=True)  # type: ignore[arg-type]
        value, per_atom = np.full(len(results), np.nan), np.full(len(results), np.nan)
        status, reason = [Status.OK] * len(results), [""] * len(results)
        for i, (structure, result) in enumerate(zip(structures, results, strict=True)):
            if not isinstance(result, PotentialResult):
                status[i] = status_of(result)
                reason[i] = (str(result) or type(result).__name__).splitlines()[0]
                continue
            if result.magmoms is None:
                raise RecipeError(
                    f"The potential {self.potential.name!r} gives no magnetic moments.",
                    fix="Use chgnet for magnetic_density.",
                )
            moment = float(np.abs(result.magmoms).sum())
            if not np.isfinite(moment):
                status[i], reason[i] = Status.FAILED, "a magnetic moment is not finite"
                continue
            value[i] = moment / abs(float(np.linalg.det(as_cell(structure).lattice)))
            per_atom[i] = moment / len(result.magmoms)
        return Scores(value, status, reason, {"magnetic_moment_per_atom": per_atom})
