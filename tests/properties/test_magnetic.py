"""Magnetic density: by definition with a made-up potential, and what CHGNet says of known magnets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, RecipeError
from nucleate.properties.magnetic import MagneticDensity
from nucleate.protocols import PotentialResult, Property, Status

IRON = Structure(Lattice.cubic(2.83), ["Fe", "Fe"], [[0] * 3, [0.5] * 3])
SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


class MadeUp:
    """Moments of 1, -2, 3, ... μ_B; fails where there is helium."""

    name, level_of_theory, correction, weights_hash = "made up", "none", "none", "0" * 64
    gives_moments = True

    def evaluate(self, structures: Sequence[Structure], **wanted: Any) -> list[Any]:
        assert wanted == {"magmoms": True}
        return [self._one(structure) for structure in structures]

    def _one(self, structure: Structure) -> PotentialResult | Exception:
        if "He" in structure.symbol_set:
            return InputError("no helium")
        moments = np.arange(1.0, len(structure) + 1) * (-1) ** np.arange(len(structure))
        moments[0] = np.nan if "Xe" in structure.symbol_set else 1.0
        return PotentialResult(-1.0, magmoms=moments if self.gives_moments else None)


def test_it_is_the_sum_of_sizes_over_the_volume_and_order_is_kept() -> None:
    helium, xenon = SALT.copy(), SALT.copy()
    helium[0], xenon[0] = "He", "Xe"
    prop = MagneticDensity(MadeUp())
    assert isinstance(prop, Property)
    scores = prop.evaluate([IRON, helium, SALT, xenon])
    assert scores.status == [Status.OK, Status.INVALID, Status.OK, Status.FAILED]
    assert scores.reason[1] == "no helium"
    np.testing.assert_allclose(scores.value[[0, 2]], [3 / 2.83**3, 36 / 5.69**3])
    assert np.isnan(scores.value[[1, 3]]).all()
    np.testing.assert_allclose(scores.extra["magnetic_moment_per_atom"][[0, 2]], [1.5, 4.5])


def test_a_potential_without_moments_is_refused() -> None:
    silent = MadeUp()
    silent.gives_moments = False
    with pytest.raises(RecipeError, match="gives no magnetic moments"):
        MagneticDensity(silent).evaluate([IRON])


def test_chgnet_knows_iron_from_salt() -> None:
    prop = MagneticDensity()
    cobalt_oxide = SALT.copy()
    cobalt_oxide.replace_species({"Na": "Co", "Cl": "O"})
    cobalt_oxide.scale_lattice(4.26**3)
    iron, salt, oxide = prop.evaluate([IRON, SALT, cobalt_oxide]).value
    assert iron == pytest.approx(2 * 2.2 / 2.83**3, rel=0.15)  # 2.2 μ_B an atom
    assert salt < 0.005
    assert oxide == pytest.approx(4 * 2.6 / 4.26**3, rel=0.2)
    assert prop.unit == "mu_B/A^3"
    assert prop.potential.weights_hash[:16] in prop.key
