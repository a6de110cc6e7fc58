"""Properties that follow from composition and cell alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nucleate.protocols import CostClass, Scores, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure


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
        return "density/1"

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Densities of B structures, order kept."""
        value = np.full(len(structures), np.nan)
        status, reason = [], []
        for i, structure in enumerate(structures):
            density = float(structure.density) if structure.volume > 0 else np.nan
            if np.isfinite(density):
                value[i] = density
                status.append(Status.OK)
                reason.append("")
            else:
                status.append(Status.INVALID)
                reason.append("the cell has no volume")
        return Scores(value, status, reason)
