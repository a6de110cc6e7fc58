"""Moduli and hardness of crystals, by a potential.

All but :class:`BulkModulusOfState` are read from one elastic tensor, which an objective computes
once for each crystal, however many of them it asks for. Polycrystal averages are those of a
material of randomly oriented grains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nucleate.errors import RecipeError, did_you_mean
from nucleate.physics.elasticity import (
    Average,
    Elasticity,
    ElasticSettings,
    ElasticTensor,
    elasticity,
    poisson_ratio,
    teter_hardness,
    tian_hardness,
    young_modulus,
)
from nucleate.physics.equation_of_state import (
    EquationOfState,
    Form,
    StateSettings,
    equations_of_state,
)
from nucleate.physics.potentials import get_potential
from nucleate.physics.relax import TIGHT
from nucleate.properties.shared import Shared, described, scores_of
from nucleate.protocols import CostClass, Measurements, Potential, Scores

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell
    from nucleate.physics.relax import RelaxSettings

AVERAGES = ("hill", "voigt", "reuss")
HARDNESSES = ("tian", "teter", "tian-teter")
SOFT_BULK_MODULUS = 25.0  # GPa, below which "tian-teter" is Teter's


class ElasticProperty:
    """What follows from the elastic tensor of a crystal.

    ``Scores.extra`` holds the averages and what follows from Hill's (``bulk_hill``, ``young``,
    ``hardness_tian``, ...), the tensor (``c11`` to ``c66``), its smallest eigenvalue
    (``softest_strain``, GPa), ``pressure`` (GPa) and ``softest_mode`` (eV/Å²). A crystal that is
    not mechanically stable is unsupported; its tensor is there.

    Args:
        potential: a potential, or the name of one ("chgnet").
        relax: True to bring crystals to the potential's minimum first, False to take them as they
            are, or settings of the relaxation, in a recipe as a mapping.
        ions: "relaxed" for atoms that follow the strain, "clamped" for the faster tensor of atoms
            that keep their fractional coordinates.
        strains: magnitudes of strain, each used with both signs.
        average: "hill", "voigt" or "reuss".

    Raises:
        RecipeError: a setting is unknown or out of range.
    """

    name = "elastic_property"
    unit = "GPa"
    cost = CostClass.RELAXATION

    def __init__(
        self,
        potential: Potential | str = "chgnet",
        relax: bool | RelaxSettings | Mapping[str, Any] = True,
        ions: Literal["relaxed", "clamped"] = "relaxed",
        strains: Sequence[float] = ElasticSettings.strains,
        average: Average = "hill",
    ) -> None:
        if average not in AVERAGES:
            raise RecipeError(
                f"there is no average {average!r} of moduli", fix=did_you_mean(average, AVERAGES)
            )
        self.potential = get_potential(potential)
        self.average: Average = average
        self.settings = ElasticSettings(TIGHT.updated(relax), ions, tuple(strains))

    @property
    def key(self) -> str:
        """Cache key: potential and weights, settings, average."""
        return f"{self.name}/1/{described(self.potential, self.settings)}/{self.average}"

    @property
    def measurement(self) -> str:
        """Key of the elastic tensors: potential and weights, settings."""
        return f"elasticity/{described(self.potential, self.settings)}"

    def evaluate(
        self, structures: Sequence[Structure | Cell], shared: Measurements | None = None
    ) -> Scores:
        """Values of B crystals, order kept."""
        results = (shared or Shared()).get(
            self.measurement,
            structures,
            lambda crystals: elasticity(crystals, self.potential, self.settings),
        )
        return scores_of(results, self._judge, _columns)

    def _judge(self, result: Elasticity) -> tuple[float, str]:
        if not result.tensor.stable:
            softest = result.tensor.softest
            return np.nan, f"not mechanically stable: a strain has the stiffness {softest:.3g} GPa"
        return self.value(*result.tensor.moduli(self.average)), ""

    def value(self, bulk: float, shear: float) -> float:
        """The property of a stable crystal with these average moduli, GPa."""
        raise NotImplementedError


class BulkModulus(ElasticProperty):
    """Bulk modulus, GPa, from the elastic tensor."""

    name = "bulk_modulus"

    def value(self, bulk: float, shear: float) -> float:
        """The bulk modulus."""
        return bulk


class ShearModulus(ElasticProperty):
    """Shear modulus, GPa."""

    name = "shear_modulus"

    def value(self, bulk: float, shear: float) -> float:
        """The shear modulus."""
        return shear


class YoungModulus(ElasticProperty):
    """Young modulus, GPa, 9 K G / (3 K + G).

    Example:
        >>> round(YoungModulus().value(100.0, 50.0), 2)
        128.57
    """

    name = "young_modulus"

    def value(self, bulk: float, shear: float) -> float:
        """The Young modulus."""
        return young_modulus(bulk, shear)


class PughRatio(ElasticProperty):
    """Pugh ratio K / G; above about 1.75 metals tend to be ductile."""

    name = "pugh_ratio"
    unit = ""

    def value(self, bulk: float, shear: float) -> float:
        """The ratio."""
        return bulk / shear


class VickersHardness(ElasticProperty):
    """Vickers hardness, GPa, estimated from the moduli.

    Args:
        formula: "tian" for 0.92 (G/K)^1.137 G^0.708, "teter" for 0.151 G, or "tian-teter" for
            Teter's where K is below 25 GPa and Tian's elsewhere.
        settings: as for :class:`ElasticProperty`.
    """

    name = "vickers_hardness"

    def __init__(
        self,
        formula: Literal["tian", "teter", "tian-teter"] = "tian-teter",
        potential: Potential | str = "chgnet",
        relax: bool | RelaxSettings | Mapping[str, Any] = True,
        ions: Literal["relaxed", "clamped"] = "relaxed",
        strains: Sequence[float] = ElasticSettings.strains,
        average: Average = "hill",
    ) -> None:
        if formula not in HARDNESSES:
            raise RecipeError(
                f"there is no hardness formula {formula!r}", fix=did_you_mean(formula, HARDNESSES)
            )
        super().__init__(potential, relax, ions, strains, average)
        self.formula = formula

    @property
    def key(self) -> str:
        """Cache key: that of the moduli, and the formula."""
        return f"{super().key}/{self.formula}"

    def value(self, bulk: float, shear: float) -> float:
        """The hardness."""
        soft = self.formula == "tian-teter" and bulk < SOFT_BULK_MODULUS
        if soft or self.formula == "teter":
            return teter_hardness(shear)
        return tian_hardness(bulk, shear)


def _columns(result: Elasticity) -> dict[str, float]:
    tensor = result.tensor
    columns = {
        f"c{i + 1}{j + 1}": float(tensor.stiffness[i, j]) for i in range(6) for j in range(i, 6)
    }
    columns |= {
        "softest_strain": tensor.softest,
        "softest_mode": result.softest_mode,
        "pressure": result.pressure,
    }
    return columns | _averages(tensor) if tensor.stable else columns


def _averages(tensor: ElasticTensor) -> dict[str, float]:
    columns: dict[str, float] = {}
    for average in AVERAGES:
        bulk, shear = tensor.moduli(average)  # type: ignore[arg-type]  # AVERAGES are its names
        columns |= {f"bulk_{average}": bulk, f"shear_{average}": shear}
    bulk, shear = tensor.moduli("hill")
    return columns | {
        "young": young_modulus(bulk, shear),
        "poisson": poisson_ratio(bulk, shear),
        "pugh": bulk / shear,
        "hardness_tian": tian_hardness(bulk, shear),
        "hardness_teter": teter_hardness(shear),
        "anisotropy": tensor.anisotropy,
    }


class BulkModulusOfState:
    """Bulk modulus, GPa, from energies at several volumes of a cell of fixed shape.

    Cheaper than the elastic tensor. For a crystal that is not cubic it is Voigt's.

    ``Scores.extra`` holds ``bulk_derivative`` (with pressure), ``volume`` (Å³/atom),
    ``energy_per_atom`` and ``residual`` of the fit (eV/atom).

    Args:
        form: "birch-murnaghan" (third order) or "murnaghan".
        potential: a potential, or the name of one ("chgnet").
        relax: True to bring crystals to the potential's minimum first, False to take them as they
            are, or settings of the relaxation, in a recipe as a mapping.
        ions: "relaxed" for atoms that relax at each volume, or "clamped".
        span: largest relative change of length, to both sides.
        points: volumes, at least five.

    Raises:
        RecipeError: a setting is unknown or out of range.
    """

    name = "bulk_modulus_eos"
    unit = "GPa"
    cost = CostClass.RELAXATION

    def __init__(
        self,
        form: Form = "birch-murnaghan",
        potential: Potential | str = "chgnet",
        relax: bool | RelaxSettings | Mapping[str, Any] = True,
        ions: Literal["relaxed", "clamped"] = "relaxed",
        span: float = StateSettings.span,
        points: int = StateSettings.points,
    ) -> None:
        self.potential = get_potential(potential)
        self.settings = StateSettings(form, TIGHT.updated(relax), ions, span, points)

    @property
    def key(self) -> str:
        """Cache key: potential and weights, settings."""
        return f"{self.name}/1/{described(self.potential, self.settings)}"

    def evaluate(self, structures: Sequence[Structure | Cell]) -> Scores:
        """Bulk moduli of B crystals, order kept."""
        results = equations_of_state(structures, self.potential, self.settings)
        return scores_of(results, _bulk_modulus, _state_columns)


def _bulk_modulus(state: EquationOfState) -> tuple[float, str]:
    if state.bulk_modulus <= 0:
        return np.nan, f"not mechanically stable: bulk modulus {state.bulk_modulus:.3g} GPa"
    return state.bulk_modulus, ""


def _state_columns(state: EquationOfState) -> dict[str, float]:
    return {
        "bulk_derivative": state.derivative,
        "volume": state.volume,
        "energy_per_atom": state.energy,
        "residual": state.residual,
    }
