"""Relaxation of many crystals at once, atoms and cell, each by quasi-Newton steps of its own.

A step goes to the minimum of a quadratic model, no further than the model has proved right. Where
that is too far, all curvatures are raised until it is near enough: the step bends towards steepest
descent, and soft directions wait for the stiff ones (trust region, Nocedal and Wright, Numerical
Optimization, 2006, chapter 4). They are raised by ``fmax`` over :data:`REACH` at least, since
forces that count as none must not carry a crystal along a flat direction out of the minimum that
it started in. The model starts from springs between neighbours (:mod:`nucleate.physics.springs`)
and learns from every step (BFGS with Powell's damping, the same book's algorithm 18.2); a step
that went uphill is taken back. The cell moves by strain increments,
``lattice <- lattice exp(strain)``, atoms with it, so that volume stays positive and no rotation
creeps in. As in ASE's cell filters the force on the cell is the virial over the number of atoms,
and a crystal has converged when no atom and no row of the cell feels more than ``fmax``.

Crystals leave the batch when they converge, blow up or fail; the rest pays nothing for them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError, NucleateError, RecipeError, did_you_mean
from nucleate.physics.cells import Cell, as_cell, as_structure, for_potential
from nucleate.physics.potentials import UnsupportedError, WorkerCrashError, status_of
from nucleate.physics.springs import STRAINS, spring_stiffness
from nucleate.physics.symmetry import Symmetry, find_symmetry, primitive_cell
from nucleate.protocols import Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.protocols import Potential, PotentialResult


class RelaxStatus(StrEnum):
    """How a relaxation ended."""

    CONVERGED = "converged"
    STEP_CAP = "step cap"
    TIMEOUT = "timeout"
    EXPLODED = "exploded"  # the volume left the allowed range, or atoms lost their neighbours
    UNSUPPORTED = "unsupported"  # the starting structure is outside the potential's range
    CRASHED = "crashed"  # the potential's worker died
    FAILED = "failed"  # the structure makes no sense, or the potential raised

    @property
    def verdict(self) -> Status:
        """Whether there is a relaxed crystal, and if not, whether that is the crystal's own."""
        match self:
            case RelaxStatus.CONVERGED | RelaxStatus.STEP_CAP:
                return Status.OK
            case RelaxStatus.EXPLODED | RelaxStatus.UNSUPPORTED:
                return Status.UNSUPPORTED
        return Status(self.value)


@dataclass(frozen=True)
class RelaxSettings:
    """Settings of a relaxation.

    Attributes:
        fmax: eV/Å, the largest force left on an atom or on the cell.
        max_steps: evaluations of forces after the first.
        timeout: seconds for one crystal; None for no limit, on workers for
            :data:`RELAXATION_SECONDS`. In a batch a crystal has its atoms' share of the time, and
            one that is over its own is tried again alone.
        cell: whether the cell moves too.
        symprec: Å; if given, forces and stress are averaged over the symmetry operations found
            in the starting structure at this tolerance, so that it can't lose symmetry.
        max_move: Å, the longest move of an atom in one step, and the most that strain may change
            a bond of 3 Å.
        volume_range: smallest and largest volume, relative to the start, that is not an explosion.
    """

    fmax: float = 0.05
    max_steps: int = 300
    timeout: float | None = None
    cell: bool = True
    symprec: float | None = None
    max_move: float = 0.2
    volume_range: tuple[float, float] = (0.25, 4.0)

    def __post_init__(self) -> None:
        for name in ("fmax", "max_steps", "max_move", "timeout", "symprec"):
            value = getattr(self, name)
            if value is None and name in ("timeout", "symprec"):
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise RecipeError(
                    f"{name} of a relaxation can't be {value!r}", fix="Give a number."
                )
        _check_range(self.volume_range)
        if not (self.fmax > 0 and self.max_steps >= 0 and self.max_move > 0):
            raise RecipeError(
                f"fmax {self.fmax}, max_steps {self.max_steps} and max_move {self.max_move} "
                "must be positive"
            )
        if self.timeout is not None and not self.timeout >= 0:
            raise RecipeError(
                f"timeout can't be {self.timeout} s", fix="Give a positive number, or null."
            )

    def updated(self, relax: bool | RelaxSettings | Mapping[str, Any]) -> RelaxSettings | None:
        """What a recipe's ``relax`` says, these settings being its default.

        Args:
            relax: False for no relaxation (None), True for these settings, a mapping for these
                with some changed, or other settings.

        Raises:
            RecipeError: a setting is unknown.
        """
        if isinstance(relax, bool):
            return self if relax else None
        if isinstance(relax, RelaxSettings):
            return relax
        if not isinstance(relax, Mapping):
            raise RecipeError(
                f"relax can't be {relax!r}",
                fix="Give true, false, or a mapping of settings: relax: {fmax: 0.02}.",
            )
        known = {field.name for field in fields(self)}
        for name in relax:
            if name not in known:
                fix = did_you_mean(name, known)
                raise RecipeError(f"unknown setting {name!r} of 'relax'", fix=fix)
        return replace(self, **relax)


ALGORITHM = 2
"""Of relaxations; counted up when the same settings lead to other crystals than before."""


def lasting(settings: Any) -> dict[str, Any]:
    """What a value depends on, for keys: settings without time-outs, and the algorithm.

    Args:
        settings: a dataclass, of a relaxation or of a measurement of relaxed crystals.
    """

    def kept(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in items if name != "timeout"}

    return {"algorithm": ALGORITHM, **asdict(settings, dict_factory=kept)}


def _check_range(volume_range: Any) -> None:
    try:
        low, high = volume_range
        fits = 0 <= low < high
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise RecipeError(
            f"volume_range of a relaxation can't be {volume_range!r}",
            fix="Give two numbers, the smaller one first: [0.25, 4].",
        )


RELAXATION_SECONDS = 600.0
"""For one crystal on a worker where nothing else is said."""

TIGHT = RelaxSettings(fmax=0.01, max_steps=500, symprec=0.01)
"""For what is measured around the minimum: close to it, and without loss of symmetry."""


@dataclass(frozen=True)
class Relaxation:
    """What became of one crystal.

    Attributes:
        status: how it ended.
        reason: empty where converged.
        structure: the last structure, also where it did not converge; None where it failed.
        energy_before, energy_after: eV/atom; NaN where there is none.
        fmax: eV/Å, largest force left, cell included.
        n_steps: steps taken.
        rmsd: Å, root mean square of the atoms' moves relative to the cell and to their mean.
        volume_ratio: volume after over volume before.
    """

    status: RelaxStatus
    reason: str = ""
    structure: Structure | None = None
    energy_before: float = float("nan")
    energy_after: float = float("nan")
    fmax: float = float("nan")
    n_steps: int = 0
    rmsd: float = float("nan")
    volume_ratio: float = float("nan")


TYPICAL_BOND = 3.0  # Å, turns a strain into a move
UPHILL = 1e-4  # eV/atom; a step to an energy that is higher by more is taken back
REACH = 0.05  # Å, how far a force of fmax may move an atom
SHIFTS = np.geomspace(1.0, 1e6, 80)  # by which the least shift of the curvatures may grow
SCALE = (0.1, 4.0)  # by how much the first step may change the scale of the model


class _Model:
    """Quadratic model of a crystal's energy, and how far it is trusted.

    Args:
        stiffness: (d, d) eV/Å², positive definite; the first 3 N coordinates are those of atoms,
            six more, if there are any, N times the strain.
        n: N.
        longest: Å, the longest move.
        shift: eV/Å², by how much each step takes all directions to be stiffer, at least.
    """

    def __init__(self, stiffness: np.ndarray, n: int, longest: float, shift: float) -> None:
        self.stiffness, self.n, self.longest, self.shift = stiffness, n, longest, shift
        self.radius, self.scaled = longest, False

    def step(self, force: np.ndarray) -> np.ndarray:
        """(d,) move to the minimum of the model, shifted until that lies where it is trusted."""
        curvatures, directions = np.linalg.eigh(self.stiffness)
        shifted = curvatures + self.shift * SHIFTS[:, None]
        steps = (force @ directions / shifted) @ directions.T
        for step in steps:
            if self._length(step) <= self.radius:
                return step
        return step * (self.radius / self._length(step))

    def learn(self, step: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        """Take in the (d,) forces, eV/Å, at both ends of a step."""
        push = self.stiffness @ step
        model = float(step @ push)
        expected, gained = before @ step - 0.5 * model, 0.5 * (before + after) @ step
        if gained < 0.2 * expected:
            self.radius = max(0.4 * self._length(step), 1e-3 * self.longest)
        elif gained > 0.5 * expected:
            self.radius = min(2.0 * self.radius, self.longest)
        change = before - after
        curvature = float(step @ change)
        if not self.scaled:
            scale = np.clip(curvature / model, *SCALE)
            self.stiffness, push, model = scale * self.stiffness, scale * push, scale * model
            self.scaled = True
        if curvature < 0.2 * model:  # damped, so that no direction becomes soft at one stroke
            part = 0.8 * model / (model - curvature)
            change = part * change + (1 - part) * push
            curvature = float(step @ change)
        self.stiffness += np.outer(change, change) / curvature - np.outer(push, push) / model

    def _length(self, step: np.ndarray) -> float:
        """Å, the longest move of an atom, or that of a typical bond by the strain."""
        atoms, strain = _parts(step, self.n)
        moved = np.sqrt((atoms**2).sum(1).max())
        return float(max(moved, TYPICAL_BOND * np.linalg.norm(strain, 2)))


def _parts(step: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) Å moves of the atoms and the (3, 3) strain of a step."""
    strain = np.zeros((3, 3))
    if len(step) > 3 * n:
        strain = np.einsum("k,kij->ij", step[3 * n :], STRAINS) / n
    return step[: 3 * n].reshape(n, 3), strain


@dataclass
class _Point:
    """A cell with its energy, eV/atom, the (d,) force on its coordinates and the largest, eV/Å."""

    cell: Cell
    energy: float
    force: np.ndarray
    fmax: float


class _Member:
    """A crystal under way: the best point so far, and the cell that is tried next."""

    def __init__(self, index: int, cell: Cell, settings: RelaxSettings) -> None:
        self.index, self.start, self.trial = index, cell, cell
        self.settings, self.n_steps, self.energy_before = settings, 0, float("nan")
        self.seconds, self.late = 0.0, False
        self.symmetry: Symmetry | None = None
        if settings.symprec is not None:
            self.symmetry = find_symmetry(cell, settings.symprec)
        n = len(cell.numbers)
        d = 3 * n + 6 if settings.cell else 3 * n
        shift = settings.fmax / REACH
        self.model = _Model(spring_stiffness(cell)[:d, :d], n, settings.max_move, shift)
        self.point: _Point | None = None
        self.step = np.zeros(d)

    def take(self, result: PotentialResult) -> None:
        """What the potential says of the trial: it becomes the point, unless it lies uphill."""
        n, lattice = len(self.start.numbers), self.trial.lattice
        forces, stress = result.forces, result.stress
        if forces is None or (self.settings.cell and stress is None):
            raise InputError("the potential gave no forces or no stress")
        stress = np.zeros((3, 3)) if stress is None else stress
        if self.symmetry is not None:
            forces, stress = _symmetrise(forces, stress, lattice, self.symmetry)
        virial = -abs(np.linalg.det(lattice)) * 0.5 * (stress + stress.T) / n
        rows = np.concatenate([forces, virial]) if self.settings.cell else forces
        force = np.concatenate([forces.ravel(), np.einsum("kij,ij->k", STRAINS, virial)])
        fmax = float(np.sqrt((rows**2).sum(1).max()))
        new = _Point(self.trial, result.energy, force[: len(self.step)], fmax)
        if self.point is None:
            self.point, self.energy_before = new, result.energy
            return
        if not np.isfinite([new.energy, fmax]).all():
            self.point = new  # which ends it: the next step would lead to the same place
            return
        self.model.learn(self.step, self.point.force, new.force)
        if new.energy <= self.point.energy + UPHILL:
            self.point = new

    def move(self) -> None:
        """Choose the next trial."""
        point = self.reached
        lattice, numbers, frac = point.cell
        self.step = self.model.step(point.force)
        atoms, strain = _parts(self.step, len(numbers))
        if self.symmetry is not None:
            atoms, strain = _symmetrise(atoms, strain, lattice, self.symmetry)
        # exp(strain) to third order; the longest move keeps strains below 0.1.
        grown = np.eye(3) + strain @ (np.eye(3) + strain @ (np.eye(3) / 2 + strain / 6))
        self.trial = Cell(lattice @ grown, numbers, frac + atoms @ np.linalg.inv(lattice))
        self.n_steps += 1

    @property
    def n_atoms(self) -> int:
        """In the cell."""
        return len(self.start.numbers)

    @property
    def reached(self) -> _Point:
        """The best point; there is one once the potential has spoken."""
        if self.point is None:
            raise ValueError("the crystal was not evaluated yet")
        return self.point

    @property
    def volume_ratio(self) -> float:
        """Of the trial, relative to the start."""
        return _volume(self.trial) / _volume(self.start)

    def lose(self, error: Exception) -> Relaxation:
        """The result where the potential gave none for the trial."""
        match status := status_of(error):
            case Status.TIMEOUT | Status.CRASHED | Status.FAILED:
                return Relaxation(RelaxStatus(status.value), str(error), n_steps=self.n_steps)
        if self.point is None:
            return Relaxation(RelaxStatus.UNSUPPORTED, str(error))
        return self.finish(RelaxStatus.EXPLODED, str(error))

    def finish(self, status: RelaxStatus, reason: str = "") -> Relaxation:
        """The result at the best point, or, of an explosion, at the trial."""
        point = self.reached
        cell = self.trial if status is RelaxStatus.EXPLODED else point.cell
        shift = cell.frac_coords - self.start.frac_coords
        shift = (shift - shift.mean(0)) @ cell.lattice
        return Relaxation(
            status,
            reason,
            as_structure(cell),
            self.energy_before,
            point.energy,
            point.fmax,
            self.n_steps,
            float(np.sqrt((shift**2).sum(1).mean())),
            _volume(cell) / _volume(self.start),
        )


def _volume(cell: Cell) -> float:
    return abs(float(np.linalg.det(cell.lattice)))


def _symmetrise(
    forces: np.ndarray,
    stress: np.ndarray,
    lattice: np.ndarray,
    symmetry: Symmetry,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of (N, 3) forces and (3, 3) stress over the operations."""
    turns = symmetry.turns(lattice)
    mean = np.zeros_like(forces)
    for turn, image in zip(turns, symmetry.images, strict=True):
        mean[image] += forces @ turn
    stress = np.einsum("gia,ij,gjb->ab", turns, stress, turns) / len(turns)
    return mean / len(turns), stress


def relax(
    structures: Sequence[Structure | Cell],
    potential: Potential,
    settings: RelaxSettings | None = None,
) -> list[Relaxation]:
    """Relax B crystals together.

    Where the potential's forces have exactly the symmetry of the crystal, as CHGNet's have here, a
    symmetric start stays symmetric, on a saddle point if need be; atoms displaced by 0.01 Å leave
    it.

    Args:
        structures: starting points.
        potential: gives forces and stress.
        settings: see :class:`RelaxSettings`.

    Returns:
        B relaxations, order kept; a crystal that fails has its reason and harms no other.
    """
    settings = settings or RelaxSettings()
    done, late = _together(structures, potential, settings)
    for i in late if len(structures) > 1 else ():
        [done[i]], _ = _together([structures[i]], potential, settings)
    return done


def _together(
    structures: Sequence[Structure | Cell], potential: Potential, settings: RelaxSettings
) -> tuple[list[Relaxation], list[int]]:
    """One batch, and the entries of it that had used up their time."""
    done: list[Relaxation | None] = [None] * len(structures)
    members: list[_Member] = []
    for i, structure in enumerate(structures):
        try:
            members.append(_Member(i, as_cell(structure), settings))
        except Exception as error:  # that structure's own failure
            done[i] = Relaxation(RelaxStatus.FAILED, str(error))
    everyone = members
    members = _evaluate(members, potential, settings, done)
    while members := [m for m in members if not _ended(m, settings, done)]:
        for member in members:
            member.move()
        members = _evaluate(members, potential, settings, done)
    return done, [m.index for m in everyone if m.late]  # type: ignore[return-value]  # the loop ends when every entry is set


def equilibrium(
    structures: Sequence[Structure | Cell],
    potential: Potential,
    settings: RelaxSettings | None = TIGHT,
    symprec: float = 0.01,
) -> list[Cell | Exception]:
    """The primitive cells of B crystals at the potential's minimum, not turned.

    Args:
        structures: the crystals, in any cell.
        potential: gives forces and stress.
        settings: of the relaxation; None for crystals as they are.
        symprec: Å, tolerance of the symmetry that tells what is primitive.

    Returns:
        For each crystal its cell, or an exception that says why it has none: a relaxation that
        has not converged is one.
    """
    found: list[Cell | Exception] = []
    for structure in structures:
        try:
            found.append(primitive_cell(as_cell(structure), symprec))
        except Exception as error:  # that structure's own failure
            found.append(error)
    rows = [i for i, cell in enumerate(found) if isinstance(cell, Cell)]
    if settings is None or not rows:
        return found
    relaxed = relax([found[i] for i in rows], potential, settings)  # type: ignore[misc]
    for i, result in zip(rows, relaxed, strict=True):
        if result.status is RelaxStatus.CONVERGED and result.structure is not None:
            found[i] = as_cell(result.structure)
        else:
            found[i] = lost(result)
    return found


def lost(result: Relaxation, what: str = "relaxation") -> Exception:
    """What stands in the place of a crystal whose relaxation did not converge."""
    kinds = {
        Status.TIMEOUT: TimeoutError,
        Status.CRASHED: WorkerCrashError,
        Status.UNSUPPORTED: UnsupportedError,
    }
    ended = result.status
    said = "not converged" if ended is RelaxStatus.STEP_CAP else ended.value
    return kinds.get(ended.verdict, NucleateError)(f"{what} {said}: {result.reason}")


def _evaluate(
    members: list[_Member],
    potential: Potential,
    settings: RelaxSettings,
    done: list[Relaxation | None],
) -> list[_Member]:
    """Forces of all trials; those that can't be evaluated are done, the others are returned."""
    started = time.monotonic()
    results = potential.evaluate(
        for_potential([m.trial for m in members], potential), forces=True, stress=settings.cell
    )
    seconds_per_atom = (time.monotonic() - started) / max(1, sum(m.n_atoms for m in members))
    alive = []
    low, high = settings.volume_range
    for member, result in zip(members, results, strict=True):
        member.seconds += seconds_per_atom * member.n_atoms
        if isinstance(result, Exception):
            done[member.index] = member.lose(result)
            continue
        member.take(result)
        if not np.isfinite([member.reached.energy, member.reached.fmax]).all():
            reason = "an energy or forces that are not finite"
            done[member.index] = Relaxation(
                RelaxStatus.FAILED,
                reason,
                energy_before=member.energy_before,
                n_steps=member.n_steps,
            )
        elif not low < member.volume_ratio < high:
            reason = f"the volume changed by a factor {member.volume_ratio:.2f}"
            done[member.index] = member.finish(RelaxStatus.EXPLODED, reason)
        else:
            alive.append(member)
    return alive


def _ended(
    member: _Member,
    settings: RelaxSettings,
    done: list[Relaxation | None],
) -> bool:
    """True, with the result noted, if this crystal has no further step to take."""
    left = member.reached.fmax
    if left < settings.fmax:
        done[member.index] = member.finish(RelaxStatus.CONVERGED)
    elif member.n_steps >= settings.max_steps:
        done[member.index] = member.finish(
            RelaxStatus.STEP_CAP, f"{left:.3f} eV/Å left after {member.n_steps} steps"
        )
    elif settings.timeout is not None and member.seconds > settings.timeout:
        member.late = True
        done[member.index] = member.finish(
            RelaxStatus.TIMEOUT, f"{settings.timeout:g} s passed after {member.n_steps} steps"
        )
    else:
        return False
    return True
