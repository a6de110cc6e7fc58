"""Equations of state: energies of a crystal at several volumes, and the bulk modulus behind them.

The cell is scaled without change of shape, so for a crystal that is not cubic the bulk modulus is
Voigt's, that of equal strain in all directions.

Murnaghan, PNAS 30, 244 (1944); Birch, Phys. Rev. 71, 809 (1947), of third order, a cubic polynomial
in V^(-2/3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from nucleate.errors import NucleateError, RecipeError
from nucleate.physics.cells import Cell, for_potential
from nucleate.physics.elasticity import GPA
from nucleate.physics.potentials import UnsupportedError
from nucleate.physics.relax import TIGHT, RelaxSettings, RelaxStatus, equilibrium, lost, relax

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.protocols import Potential

MISFIT = 0.05  # rms residual relative to the range of the energies that no good fit leaves
Form = Literal["birch-murnaghan", "murnaghan"]


@dataclass(frozen=True)
class StateSettings:
    """Settings of an equation of state.

    Attributes:
        form: "birch-murnaghan" or "murnaghan".
        relax: how cell and atoms are brought to the minimum first; None to take the crystal as it
            is.
        ions: "relaxed" for atoms that relax at each volume, "clamped" for atoms that keep their
            fractional coordinates.
        span: the largest change of length, relative, to both sides.
        points: volumes, at least five.
        symprec: Å, tolerance of the symmetry.
    """

    form: Form = "birch-murnaghan"
    relax: RelaxSettings | None = TIGHT
    ions: Literal["relaxed", "clamped"] = "relaxed"
    span: float = 0.02
    points: int = 7
    symprec: float = 0.01

    def __post_init__(self) -> None:
        if self.form not in _FITS:
            raise RecipeError(
                f"there is no equation of state {self.form!r}", fix=f"Known: {', '.join(_FITS)}."
            )
        if self.ions not in ("relaxed", "clamped"):
            raise RecipeError(f"ions is {self.ions!r}", fix="It is 'relaxed' or 'clamped'.")
        if not (0 < self.span < 0.2 and self.points >= 5):
            raise RecipeError(
                f"span is {self.span} with {self.points} points",
                fix="The span lies between 0 and 0.2, and there are at least 5 points.",
            )


@dataclass(frozen=True)
class EquationOfState:
    """A fitted equation of state.

    Attributes:
        bulk_modulus: GPa, at the volume of lowest energy.
        derivative: of the bulk modulus with pressure.
        volume: Å³/atom, of lowest energy.
        energy: eV/atom, there.
        residual: eV/atom, root mean square of what the fit leaves.
    """

    bulk_modulus: float
    derivative: float
    volume: float
    energy: float
    residual: float


def equations_of_state(
    structures: Sequence[Structure | Cell],
    potential: Potential,
    settings: StateSettings | None = None,
) -> list[EquationOfState | Exception]:
    """Equations of state of B crystals.

    Args:
        structures: the crystals, in any cell; the primitive one is used.
        potential: gives energies, and forces where something relaxes.
        settings: see :class:`StateSettings`.

    Returns:
        For each crystal its equation of state, order kept, or an exception that says why it has
        none.
    """
    settings = settings or StateSettings()
    cells = equilibrium(structures, potential, settings.relax, settings.symprec)
    lengths = np.linspace(1 - settings.span, 1 + settings.span, settings.points)
    rows = [i for i, cell in enumerate(cells) if isinstance(cell, Cell)]
    scaled = [cells[i]._replace(lattice=cells[i].lattice * x) for i in rows for x in lengths]  # type: ignore[union-attr]
    energies = iter(_energies(scaled, potential, settings))
    found: list[EquationOfState | Exception] = []
    for cell in cells:
        if isinstance(cell, Exception):
            found.append(cell)
            continue
        energy = [next(energies) for _ in lengths]
        if failures := [e for e in energy if isinstance(e, Exception)]:
            found.append(failures[0])
            continue
        volume = abs(np.linalg.det(cell.lattice)) / len(cell.numbers) * lengths**3
        try:
            found.append(fit(volume, np.array(energy, dtype=np.float64), settings.form))
        except NucleateError as error:
            found.append(error)
    return found


def _energies(
    cells: list[Cell], potential: Potential, settings: StateSettings
) -> list[float | Exception]:
    """eV/atom."""
    if settings.ions == "clamped":
        results = potential.evaluate(for_potential(cells, potential)) if cells else []
        return [r if isinstance(r, Exception) else r.energy for r in results]
    relaxed = relax(cells, potential, replace(settings.relax or TIGHT, cell=False))
    return [
        r.energy_after
        if r.status is RelaxStatus.CONVERGED
        else lost(r, "relaxation at fixed volume")
        for r in relaxed
    ]


def fit(volume: np.ndarray, energy: np.ndarray, form: Form = "birch-murnaghan") -> EquationOfState:
    """The equation of state through some points.

    Args:
        volume: (n,) Å³/atom.
        energy: (n,) eV/atom.
        form: of the equation.

    Raises:
        UnsupportedError: the energy has no minimum between the volumes, or the form does not fit.
    """
    found = _FITS[form](volume, energy)
    if not volume.min() < found.volume < volume.max():
        raise UnsupportedError(
            f"no equation of state: the energy is lowest at {found.volume:.4g} Å³/atom, outside of "
            f"{volume.min():.4g} to {volume.max():.4g}"
        )
    if found.residual > MISFIT * np.ptp(energy):
        raise UnsupportedError(
            f"no equation of state: the fit leaves {found.residual:.2g} of {np.ptp(energy):.2g} "
            "eV/atom"
        )
    return found


def _birch_murnaghan(volume: np.ndarray, energy: np.ndarray) -> EquationOfState:
    scale = volume.mean()
    x = (volume / scale) ** (-2 / 3)
    polynomial = np.polynomial.Polynomial.fit(x, energy, 3)
    curvature = polynomial.deriv(2)
    roots = np.asarray(polynomial.deriv().roots())
    real = roots.real[np.abs(roots.imag) < 1e-9]
    lowest = real[(curvature(real) > 0) & (real > 0)]
    if not len(lowest):
        raise UnsupportedError("no equation of state: the energy has no minimum")
    x0 = float(lowest[0])  # a cubic has one minimum at most
    v0 = x0**-1.5 * scale
    bulk = 4 / 9 * curvature(x0) * x0**2 / v0
    third = polynomial.deriv(3)(x0) / curvature(x0)
    residual = float(np.sqrt(((polynomial(x) - energy) ** 2).mean()))
    return EquationOfState(
        float(bulk * GPA), float(4 + 2 / 3 * x0 * third), float(v0), float(polynomial(x0)), residual
    )


def _murnaghan(volume: np.ndarray, energy: np.ndarray) -> EquationOfState:
    from scipy.optimize import least_squares

    start = _birch_murnaghan(volume, energy)

    def curve(parameters: np.ndarray) -> np.ndarray:
        e0, bulk, derivative, v0 = parameters
        ratio = (v0 / volume) ** derivative / (derivative - 1)
        return e0 + bulk * volume / derivative * (ratio + 1) - bulk * v0 / (derivative - 1)

    first = [start.energy, start.bulk_modulus / GPA, start.derivative, start.volume]
    span = np.ptp(energy)
    found = least_squares(lambda p: (curve(p) - energy) / span, first, x_scale=np.abs(first))
    e0, bulk, derivative, v0 = map(float, found.x)
    residual = float(np.sqrt(((curve(found.x) - energy) ** 2).mean()))
    return EquationOfState(bulk * GPA, derivative, v0, e0, residual)


_FITS = {"birch-murnaghan": _birch_murnaghan, "murnaghan": _murnaghan}
