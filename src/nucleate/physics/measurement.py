"""Measurements that need several evaluations of each crystal, on many crystals at once.

A measurement of one crystal is a generator: it yields the cells whose forces and stress it needs
next, is sent their results, and returns what it found. It reads like a calculation on one crystal;
:func:`measure` asks the potential for what all of them need, together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from nucleate.errors import NucleateError
from nucleate.physics.cells import Cell, for_potential
from nucleate.protocols import PotentialResult

if TYPE_CHECKING:
    from nucleate.protocols import Potential

Found = TypeVar("Found")
Measurement: TypeAlias = Generator[Sequence[Cell], list[PotentialResult], Found]

CRYSTALS_AT_ONCE = 64
ATOMS_PER_CALL = 20_000  # bounds the memory of one call of the potential


def measure(
    measurements: Sequence[Measurement[Found] | Exception],
    potential: Potential,
    *,
    stress: bool = False,
) -> list[Found | Exception]:
    """Run B measurements side by side.

    Args:
        measurements: for each crystal its measurement, or why there is none.
        potential: gives forces.
        stress: whether stress is needed too.

    Returns:
        For each crystal what its measurement returned, order kept, or an exception: the one that
        stood in its place, that it raised, or that the potential gave for one of its cells.
    """
    found: list[Found | Exception] = []
    for start in range(0, len(measurements), CRYSTALS_AT_ONCE):
        found += _measure(measurements[start : start + CRYSTALS_AT_ONCE], potential, stress)
    return found


def _measure(
    measurements: Sequence[Measurement[Found] | Exception], potential: Potential, stress: bool
) -> list[Found | Exception]:
    found: dict[int, Found | Exception] = {}
    running: dict[int, Measurement[Found]] = {}
    for i, measurement in enumerate(measurements):
        if isinstance(measurement, Exception):
            found[i] = measurement
        else:
            running[i] = measurement
    answers: dict[int, list[PotentialResult]] = {}
    while running:
        asked: list[tuple[int, Cell]] = []
        for i, measurement in running.items():
            try:
                cells = measurement.send(answers[i]) if i in answers else next(measurement)
                asked += [(i, cell) for cell in cells]
            except StopIteration as end:
                found[i] = end.value
            except Exception as error:  # that crystal's own failure
                found[i] = error
        answers = {i: [] for i in running}
        results = _evaluate([cell for _, cell in asked], potential, stress)
        for (i, _), result in zip(asked, results, strict=True):
            checked = _checked(result, potential, stress)
            if isinstance(checked, Exception):
                found.setdefault(i, checked)
            else:
                answers[i].append(checked)
        running = {i: measurement for i, measurement in running.items() if i not in found}
    return [found[i] for i in range(len(measurements))]


def _checked(
    result: PotentialResult | Exception, potential: Potential, stress: bool
) -> PotentialResult | Exception:
    """The result, or what is wrong with it."""
    if isinstance(result, Exception):
        return result
    for asked, array in ((True, result.forces), (stress, result.stress)):
        if asked and array is None:
            return NucleateError(f"{potential.name} gave no forces or no stress")
        if asked and not np.isfinite(array).all():  # type: ignore[arg-type]  # not None
            return NucleateError(f"{potential.name} gave forces or a stress that are not finite")
    return result


def _evaluate(
    cells: Sequence[Cell], potential: Potential, stress: bool
) -> Iterator[PotentialResult | Exception]:
    """Results of any number of cells, a part at a time."""
    part: list[Cell] = []
    n_atoms = 0
    for k, cell in enumerate(cells):
        part.append(cell)
        n_atoms += len(cell.numbers)
        if n_atoms >= ATOMS_PER_CALL or k + 1 == len(cells):
            asked = for_potential(part, potential)
            yield from potential.evaluate(asked, forces=True, stress=stress)
            part, n_atoms = [], 0
