"""Interatomic potentials by name, and any ASE calculator as one.

A potential takes structures and gives energies, and on request forces, stresses and magnetic
moments (:class:`nucleate.protocols.Potential`). It declares its level of theory and the energy
correction that its energies already include, because an energy above hull is meaningful only if
both sides of the subtraction share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nucleate import plugins, worker
from nucleate.errors import (
    InputError,
    MissingDependencyError,
    NucleateError,
    RecipeError,
    did_you_mean,
)
from nucleate.physics.cells import as_cell
from nucleate.protocols import Potential, PotentialResult, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.cells import Cell

CORRECTIONS = ("MP2020", "none")


class WorkerCrashError(NucleateError):
    """The process that evaluated a crystal died."""


class UnsupportedError(NucleateError):
    """A crystal is outside the range of what evaluates it."""


def status_of(error: BaseException | None) -> Status:
    """The status that an evaluation's exception stands for; OK for None."""
    if error is None:
        return Status.OK
    if isinstance(error, TimeoutError):
        return Status.TIMEOUT
    if isinstance(error, WorkerCrashError):
        return Status.CRASHED
    if isinstance(error, UnsupportedError):
        return Status.UNSUPPORTED
    return Status.INVALID if isinstance(error, InputError) else Status.FAILED


def check_correction(correction: str) -> None:
    """Refuse an unknown energy correction.

    Raises:
        RecipeError: with the nearest known one.
    """
    if correction not in CORRECTIONS:
        raise RecipeError(
            f"unknown energy correction {correction!r}", fix=did_you_mean(correction, CORRECTIONS)
        )


class AsePotential:
    """Any ASE calculator behind the potential's interface.

    Args:
        calculator: an ASE calculator, or a function without arguments that makes one.
        name: short name for results and reports.
        level_of_theory: what its energies imitate, such as "PBE".
        correction: the energy correction its energies include, "MP2020" or "none".
        weights_hash: sha256 of its weights; by default of its torch modules, or of its class and
            parameters where it has none.
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
        check_correction(correction)
        if not hasattr(calculator, "calculate"):
            calculator = calculator()
        self._calculator = calculator
        self.accepts_cells = True
        self.name = name or type(calculator).__name__.lower()
        self.level_of_theory = level_of_theory
        self.correction = correction
        self.weights_hash = weights_hash or worker.weights_hash(calculator)

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
        wanted = {"forces": forces, "stress": stress, "magmoms": magmoms}
        for structure in structures:
            try:
                cell = as_cell(structure)._asdict()
                out.append(PotentialResult(**worker.calculate(self._calculator, cell, **wanted)))
            except Exception as error:  # a calculator may raise anything
                out.append(error)
        return out


def ase_potential(
    calculator: str,
    arguments: Mapping[str, Any] | None = None,
    level_of_theory: str = "unknown",
    correction: str = "none",
    python: str | None = None,
    workers: int | None = None,
    timeout: float | None = None,
) -> Potential:
    """Any ASE calculator by name, here or in another interpreter.

    Args:
        calculator: ``module:factory`` or ``path.py:factory``.
        arguments: keyword arguments of the factory.
        level_of_theory: what its energies imitate, such as "PBE".
        correction: the energy correction its energies include, "MP2020" or "none".
        python: another interpreter to compute in.
        workers: processes of that interpreter, 1 by default.
        timeout: seconds for one crystal there, 60 by default.

    Raises:
        RecipeError: the calculator's name reads otherwise, or a setting is out of range.
        MissingDependencyError: a package is missing.
        InputError: the calculator can't be made.
    """
    if ":" not in calculator:
        raise RecipeError(f"{calculator!r} does not read module:factory.")
    name = f"ase:{calculator}"
    described = {"name": name, "level_of_theory": level_of_theory, "correction": correction}
    return make_ase_potential(calculator, arguments or {}, described, python, workers, timeout)


def make_ase_potential(
    target: str,
    arguments: Mapping[str, Any],
    described: Mapping[str, str],
    python: str | None,
    workers: int | None,
    timeout: float | None,
) -> Potential:
    """:func:`ase_potential` with its name; ``described`` holds that, level and correction."""
    check_correction(described["correction"])
    if python is not None:
        given = {"workers": workers, "timeout": timeout}
        isolated: Potential = plugins.load(plugins.POTENTIALS, "isolated")(
            target,
            python,
            arguments,
            **described,
            **{key: value for key, value in given.items() if value is not None},
        )
        return isolated
    if workers is not None or timeout is not None:
        raise RecipeError(
            f"{described['name']}: workers and timeout are those of another interpreter.",
            fix="Add 'python: /path/to/its/python', or remove them.",
        )
    what = f"The potential {described['name']!r} can't be made."
    try:
        made = worker.make_calculator(target, arguments)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            what,
            f"{error.msg}.",
            "Install the package, or name an interpreter that has it: 'python: /path/to/python'.",
        ) from error
    except Exception as error:  # a package may raise anything
        raise InputError(what, f"{type(error).__name__}: {error}.") from error
    return AsePotential(made, **described)


def _no_potential(spec: Any) -> RecipeError:
    return RecipeError(
        f"A potential can't be {spec!r}.", fix="Give its name, or a mapping of 'name' and settings."
    )


def get_potential(spec: str | Mapping[str, Any] | Any) -> Potential:
    """Make a potential.

    Args:
        spec: "chgnet" or another name that ``nucleate doctor`` lists; a mapping of ``name`` and
            settings, as a recipe has it; "ase:module:factory", where ``factory()`` gives an ASE
            calculator; an ASE calculator; or a potential, which is returned as it is.

    Raises:
        RecipeError: the name or a setting is unknown.
        MissingDependencyError: its package is missing.
        InputError: it can't be made.
    """
    if isinstance(spec, str):
        name, colon, calculator = spec.partition(":")
        spec = {"name": name, "calculator": calculator} if colon else {"name": name}
    if spec is None or isinstance(spec, (bool, int, float, list, tuple)):
        raise _no_potential(spec)
    if not isinstance(spec, Mapping):
        return spec if isinstance(spec, Potential) else AsePotential(spec)
    settings = dict(spec)
    if not isinstance(name := settings.pop("name", None), str):
        raise _no_potential(dict(spec))
    made: Potential = plugins.create(plugins.POTENTIALS, name, settings)
    return made
