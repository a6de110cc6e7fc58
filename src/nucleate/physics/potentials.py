"""Interatomic potentials by name, and any ASE calculator as one.

A potential takes structures and gives energies, and on request forces, stresses and magnetic
moments (:class:`nucleate.protocols.Potential`). It declares its level of theory and the energy
correction that its energies already include, because an energy above hull is meaningful only if
both sides of the subtraction share them.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate import plugins
from nucleate.errors import InputError, NucleateError, RecipeError, did_you_mean
from nucleate.protocols import Potential, PotentialResult, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell

CORRECTIONS = ("MP2020", "none")


class WorkerCrashError(NucleateError):
    """The process that evaluated a crystal died."""


def status_of(error: BaseException | None) -> Status:
    """The status that an evaluation's exception stands for; OK for None."""
    if error is None:
        return Status.OK
    if isinstance(error, TimeoutError):
        return Status.TIMEOUT
    if isinstance(error, WorkerCrashError):
        return Status.CRASHED
    return Status.INVALID if isinstance(error, InputError) else Status.FAILED


class AsePotential:
    """Any ASE calculator behind the potential's interface.

    Args:
        calculator: an ASE calculator, or a function without arguments that makes one.
        name: short name for results and reports.
        level_of_theory: what its energies imitate, such as "PBE".
        correction: the energy correction its energies include, "MP2020" or "none".
        weights_hash: sha256 of its weights; by default of its name and parameters.
    """

    def __init__(
        self,
        calculator: Any,
        *,
        name: str | None = None,
        level_of_theory: str = "unknown",
        correction: str = "none",
        weights_hash: str | None = None,
    ) -> None:
        if correction not in CORRECTIONS:
            raise RecipeError(
                f"unknown energy correction {correction!r}",
                fix=did_you_mean(correction, CORRECTIONS),
            )
        if not hasattr(calculator, "calculate"):
            calculator = calculator()
        self._calculator = calculator
        self.accepts_cells = True
        self.name = name or type(calculator).__name__.lower()
        self.level_of_theory = level_of_theory
        self.correction = correction
        described = f"{type(calculator).__module__}.{type(calculator).__qualname__}"
        described += repr(sorted(getattr(calculator, "parameters", {}).items()))
        self.weights_hash = weights_hash or hashlib.sha256(described.encode()).hexdigest()

    def evaluate(
        self,
        structures: Sequence[Structure | Cell],
        *,
        forces: bool = False,
        stress: bool = False,
        magmoms: bool = False,
    ) -> list[PotentialResult | Exception]:
        """One result for each of B structures; an exception where that structure alone failed."""
        out: list[PotentialResult | Exception] = []
        for structure in structures:
            try:
                out.append(self._evaluate_one(structure, forces, stress, magmoms))
            except Exception as error:  # a calculator may raise anything
                out.append(error)
        return out

    def _evaluate_one(
        self, structure: Structure | Cell, forces: bool, stress: bool, magmoms: bool
    ) -> PotentialResult:
        from ase import Atoms

        from nucleate.physics.cells import as_cell

        cell = as_cell(structure)
        atoms = Atoms(
            numbers=cell.numbers, cell=cell.lattice, scaled_positions=cell.frac_coords, pbc=True
        )
        atoms.calc = self._calculator
        energy = float(atoms.get_potential_energy()) / len(atoms)
        result = PotentialResult(
            energy,
            atoms.get_forces() if forces else None,
            atoms.get_stress(voigt=False) if stress else None,
            np.array(atoms.get_magnetic_moments()) if magmoms else None,
        )
        arrays = (result.energy, result.forces, result.stress)
        if not all(np.isfinite(a).all() for a in arrays if a is not None):
            raise InputError(f"{self.name} gave a value that is not finite")
        return result


def get_potential(spec: str | Any) -> Potential:
    """Make a potential.

    Args:
        spec: "chgnet" or the name of a plug-in; "ase:module:factory", where ``factory()`` gives
            an ASE calculator or a potential; an ASE calculator; or a potential, which is
            returned as it is.

    Raises:
        RecipeError: if the name is unknown or the module has no such factory.
    """
    if not isinstance(spec, str):
        return spec if isinstance(spec, Potential) else AsePotential(spec)
    if not spec.startswith("ase:"):
        made: Potential = plugins.create(plugins.POTENTIALS, spec)
        return made
    _, module_name, *rest = spec.split(":")
    if len(rest) != 1:
        raise RecipeError(f"{spec!r} does not read ase:module:factory")
    try:
        factory = getattr(importlib.import_module(module_name), rest[0])
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"the potential {spec!r} can't be imported", str(error), "check module and name"
        ) from error
    built = factory()
    return built if isinstance(built, Potential) else AsePotential(built, name=spec)
