"""Relaxation of many crystals at once: atoms and cell, FIRE, each crystal with its own step size.

FIRE is Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006). The cell moves by strain increments,
``lattice <- lattice exp(strain)``, atoms with it, so that volume stays positive and no rotation
creeps in. As in ASE's cell filters the force on the cell is the virial over the number of atoms,
and a crystal has converged when no atom and no row of the cell feels more than ``fmax``.

Crystals leave the batch when they converge, blow up or fail; the rest pays nothing for them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError, NucleateError, RecipeError, did_you_mean
from nucleate.physics.cells import Cell, as_cell, as_structure, for_potential
from nucleate.physics.symmetry import Symmetry, find_symmetry, primitive_cell

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.protocols import Potential, PotentialResult


class RelaxStatus(StrEnum):
    """How a relaxation ended."""

    CONVERGED = "converged"
    STEP_CAP = "step cap"
    TIMEOUT = "timeout"
    EXPLODED = "exploded"  # the volume left the allowed range, or atoms lost their neighbours
    FAILED = "failed"  # the starting structure could not be evaluated


@dataclass(frozen=True)
class RelaxSettings:
    """Settings of a relaxation.

    Attributes:
        fmax: eV/Å, the largest force left on an atom or on the cell.
        max_steps: evaluations of forces after the first.
        timeout: seconds for the whole batch, None for no limit.
        cell: whether the cell moves too.
        symprec: Å; if given, forces and stress are averaged over the symmetry operations found
            in the starting structure at this tolerance, so that it can't lose symmetry.
        max_move: Å, the longest step of a crystal, over all its coordinates together.
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
        if not (self.fmax > 0 and self.max_steps >= 0 and self.max_move > 0):
            raise RecipeError(
                f"fmax {self.fmax}, max_steps {self.max_steps} and max_move {self.max_move} "
                "must be positive"
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
        known = {field.name for field in fields(self)}
        for name in relax:
            if name not in known:
                fix = did_you_mean(name, known)
                raise RecipeError(f"unknown setting {name!r} of 'relax'", fix=fix)
        return replace(self, **relax)


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


class _Fire:
    """Step size and velocity of each of B crystals; coordinates lie end to end, (n, 3)."""

    START, GROW, SHRINK, MIX, MIX_DECAY, LONGEST, PATIENCE = 0.1, 1.1, 0.5, 0.1, 0.99, 1.0, 5

    def __init__(self, owner: np.ndarray, n: int, max_move: float) -> None:
        self.owner, self.n, self.max_move = owner, n, max_move
        self.velocity = np.zeros((len(owner), 3))
        self.dt, self.mix = np.full(n, self.START), np.full(n, self.MIX)
        self.downhill = np.zeros(n, dtype=np.int64)

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.bincount(self.owner, np.einsum("ij,ij->i", a, b), minlength=self.n)

    def step(self, force: np.ndarray) -> np.ndarray:
        """(n, 3) moves for (n, 3) forces, and the next state."""
        power = self._dot(force, self.velocity)
        moving = self._dot(self.velocity, self.velocity) > 0
        good = moving & (power > 0)
        scale = np.sqrt(
            self._dot(self.velocity, self.velocity) / np.maximum(self._dot(force, force), 1e-30)
        )
        keep = np.where(good, 1.0 - self.mix, 0.0)[self.owner, None]
        add = np.where(good, self.mix * scale, 0.0)[self.owner, None]
        self.velocity = keep * self.velocity + add * force
        patient = good & (self.downhill > self.PATIENCE)
        bad = moving & ~good
        self.dt = np.where(patient, np.minimum(self.dt * self.GROW, self.LONGEST), self.dt)
        self.dt = np.where(bad, self.dt * self.SHRINK, self.dt)
        self.mix = np.where(patient, self.mix * self.MIX_DECAY, np.where(bad, self.MIX, self.mix))
        self.downhill = np.where(good, self.downhill + 1, np.where(bad, 0, self.downhill))
        self.velocity += self.dt[self.owner, None] * force
        move = self.dt[self.owner, None] * self.velocity
        length = np.sqrt(self._dot(move, move))
        return move * np.minimum(1.0, self.max_move / np.maximum(length, 1e-30))[self.owner, None]

    def keep(self, crystals: np.ndarray) -> None:
        """Drop the crystals where the (B,) mask is False."""
        rows = crystals[self.owner]
        self.velocity = self.velocity[rows]
        self.owner = (np.cumsum(crystals) - 1)[self.owner[rows]]
        self.dt, self.mix = self.dt[crystals], self.mix[crystals]
        self.downhill, self.n = self.downhill[crystals], int(crystals.sum())


@dataclass
class _Member:
    """A crystal under way."""

    index: int
    start: Cell
    cell: Cell
    symmetry: Symmetry | None
    energy_before: float = float("nan")
    energy: float = float("nan")
    fmax: float = float("nan")
    n_steps: int = 0
    force: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # (N + 3, 3), cell last

    def take(self, result: PotentialResult, settings: RelaxSettings) -> None:
        n = len(self.cell.numbers)
        forces, stress = result.forces, result.stress
        lattice = self.cell.lattice
        if forces is None or (settings.cell and stress is None):
            raise InputError("the potential gave no forces or no stress")
        stress = np.zeros((3, 3)) if stress is None else stress
        if self.symmetry is not None:
            forces, stress = _symmetrise(forces, stress, lattice, self.symmetry)
        virial = np.zeros((3, 3))
        if settings.cell:
            virial = -abs(np.linalg.det(lattice)) * 0.5 * (stress + stress.T) / n
        self.force = np.concatenate([forces, virial])
        self.fmax = float(np.sqrt((self.force**2).sum(1).max()))
        self.energy = result.energy

    def move(self, move: np.ndarray) -> None:
        n = len(self.cell.numbers)
        lattice, numbers, frac = self.cell
        frac = frac + move[:n] @ np.linalg.inv(lattice)
        strain = move[n:] / n
        # exp(strain) to third order; the longest move keeps strains below 0.2.
        grown = np.eye(3) + strain @ (np.eye(3) + strain @ (np.eye(3) / 2 + strain / 6))
        self.cell = Cell(lattice @ grown, numbers, frac)
        self.n_steps += 1

    @property
    def volume_ratio(self) -> float:
        return float(abs(np.linalg.det(self.cell.lattice)) / abs(np.linalg.det(self.start.lattice)))

    def finish(self, status: RelaxStatus, reason: str = "") -> Relaxation:
        shift = self.cell.frac_coords - self.start.frac_coords
        shift = (shift - shift.mean(0)) @ self.cell.lattice
        return Relaxation(
            status,
            reason,
            as_structure(self.cell),
            self.energy_before,
            self.energy,
            self.fmax,
            self.n_steps,
            float(np.sqrt((shift**2).sum(1).mean())),
            self.volume_ratio,
        )


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

    Args:
        structures: starting points.
        potential: gives forces and stress.
        settings: see :class:`RelaxSettings`.

    Returns:
        B relaxations, order kept; a crystal that fails has its reason and harms no other.
    """
    settings = settings or RelaxSettings()
    deadline = None if settings.timeout is None else time.monotonic() + settings.timeout
    done: list[Relaxation | None] = [None] * len(structures)
    members: list[_Member] = []
    for i, structure in enumerate(structures):
        try:
            cell = as_cell(structure)
            found = None if settings.symprec is None else find_symmetry(cell, settings.symprec)
            members.append(_Member(i, cell, cell, found))
        except Exception as error:  # that structure's own failure
            done[i] = Relaxation(RelaxStatus.FAILED, str(error))
    members = _evaluate(members, potential, settings, done, first=True)
    sizes = [len(m.cell.numbers) + 3 for m in members]
    fire = _Fire(np.repeat(np.arange(len(members)), sizes), len(members), settings.max_move)
    while True:
        keep = np.array([_ended(m, settings, deadline, done) for m in members], dtype=bool)
        members = [m for m, stay in zip(members, keep, strict=True) if stay]
        fire.keep(keep)
        if not members:
            break
        moves = fire.step(np.concatenate([m.force for m in members]))
        cuts = np.cumsum([len(m.force) for m in members])[:-1]
        for member, move in zip(members, np.split(moves, cuts), strict=True):
            member.move(move)
        alive = _evaluate(members, potential, settings, done, first=False)
        living = {id(m) for m in alive}
        fire.keep(np.array([id(m) in living for m in members], dtype=bool))
        members = alive
    return done  # type: ignore[return-value]  # the loop ends when every entry is set


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
        elif result.status is RelaxStatus.TIMEOUT:
            found[i] = TimeoutError(f"relaxation: {result.reason}")
        elif result.status is RelaxStatus.STEP_CAP:
            found[i] = NucleateError(f"relaxation not converged: {result.reason}")
        else:
            found[i] = NucleateError(f"relaxation {result.status.value}: {result.reason}")
    return found


def _evaluate(
    members: list[_Member],
    potential: Potential,
    settings: RelaxSettings,
    done: list[Relaxation | None],
    *,
    first: bool,
) -> list[_Member]:
    """Forces of all members; those that can't be evaluated are done, the others are returned."""
    results = potential.evaluate(
        for_potential([m.cell for m in members], potential), forces=True, stress=settings.cell
    )
    alive = []
    low, high = settings.volume_range
    for member, result in zip(members, results, strict=True):
        if isinstance(result, Exception):
            if first:
                done[member.index] = Relaxation(RelaxStatus.FAILED, str(result))
            else:
                done[member.index] = member.finish(RelaxStatus.EXPLODED, str(result))
            continue
        member.take(result, settings)
        if first:
            member.energy_before = result.energy
        if not np.isfinite(member.fmax):
            done[member.index] = Relaxation(RelaxStatus.FAILED, "forces that are not finite")
        elif not low < member.volume_ratio < high:
            reason = f"the volume changed by a factor {member.volume_ratio:.2f}"
            done[member.index] = member.finish(RelaxStatus.EXPLODED, reason)
        else:
            alive.append(member)
    return alive


def _ended(
    member: _Member,
    settings: RelaxSettings,
    deadline: float | None,
    done: list[Relaxation | None],
) -> bool:
    """False, with the result noted, if this crystal has no further step to take."""
    if member.fmax < settings.fmax:
        done[member.index] = member.finish(RelaxStatus.CONVERGED)
    elif member.n_steps >= settings.max_steps:
        done[member.index] = member.finish(
            RelaxStatus.STEP_CAP, f"{member.fmax:.3f} eV/Å left after {member.n_steps} steps"
        )
    elif deadline is not None and time.monotonic() > deadline:
        done[member.index] = member.finish(
            RelaxStatus.TIMEOUT, f"{settings.timeout:g} s passed after {member.n_steps} steps"
        )
    else:
        return True
    return False
