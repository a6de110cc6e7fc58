"""Elastic tensors of many crystals at once, from the stresses and forces of a potential.

Strains are Green-Lagrange strains E, the stress is the second Piola-Kirchhoff stress S, so that
``C = dS/dE`` is the second derivative of the energy, also where the crystal is under pressure. The
slope is that of the straight line of least squares through pairs of opposite strains: larger ones
average over the roughness of a learnt potential, smaller ones come nearer to the derivative of a
smooth one.

With atoms that relax, the tensor is that of clamped atoms less what the atoms give way,
``C - (L K^-1 L^T) / V`` (Wu, Vanderbilt, Hamann, Phys. Rev. B 72, 035105, 2005). The coupling L are
the forces that strains leave on the atoms, the stiffness K comes from displaced atoms, so nothing
is relaxed at finite strain, and nothing can leave for another minimum.

Each crystal is strained and displaced only in directions that its symmetry doesn't make equal;
where symmetry forbids any coupling, no atom is displaced at all.

Tensors are in the Cartesian frame of the crystal that was given, in Voigt's order xx, yy, zz, yz,
xz, xy with engineering shear strains. Inside, Mandel's basis is used, in which rotations are
orthogonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from nucleate.errors import RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.measurement import Measurement, measure
from nucleate.physics.potentials import UnsupportedError
from nucleate.physics.relax import TIGHT, RelaxSettings, equilibrium
from nucleate.physics.symmetry import find_symmetry

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.protocols import Potential, PotentialResult

GPA = 160.21766208  # GPa in an eV/Å³
SOFT = 0.01  # eV/Å²: a mode of the atoms below this can't carry a load
UNCOUPLED = 0.02  # eV/Å for unit strain: below this a mode doesn't feel strain
SAME = 1e-3  # unit vectors closer than this are equal

_AXES = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_TO_VOIGT = np.array([1, 1, 1, 2**-0.5, 2**-0.5, 2**-0.5])
Average = Literal["hill", "voigt", "reuss"]


def _mandel_basis() -> np.ndarray:
    basis = np.zeros((6, 3, 3))
    for k, (a, b) in enumerate(_AXES):
        basis[k, a, b] = basis[k, b, a] = 1.0 if a == b else 2**-0.5
    return basis


_MANDEL = _mandel_basis()  # (6, 3, 3), orthonormal


def young_modulus(bulk: float, shear: float) -> float:
    """Young modulus of an isotropic solid, GPa, from bulk and shear modulus, GPa."""
    return 9 * bulk * shear / (3 * bulk + shear)


def poisson_ratio(bulk: float, shear: float) -> float:
    """Poisson ratio of an isotropic solid from bulk and shear modulus, GPa."""
    return (3 * bulk - 2 * shear) / (6 * bulk + 2 * shear)


def tian_hardness(bulk: float, shear: float) -> float:
    """Vickers hardness, GPa: Tian, Xu, Zhao, Int. J. Refract. Met. Hard Mater. 33, 93 (2012)."""
    return 0.92 * (shear / bulk) ** 1.137 * shear**0.708


def teter_hardness(shear: float) -> float:
    """Vickers hardness, GPa, from the shear modulus, GPa: Teter, MRS Bulletin 23, 22 (1998)."""
    return 0.151 * shear


@dataclass(frozen=True)
class ElasticTensor:
    """Stiffness of a crystal and the moduli of a polycrystal of it.

    Attributes:
        stiffness: (6, 6) float64, GPa, Voigt's order, engineering shear strains.

    Example:
        >>> cubic = np.diag([110.0, 110, 110, 30, 30, 30])
        >>> cubic[:3, :3] += 50 * (1 - np.eye(3))
        >>> ElasticTensor(cubic).moduli("voigt")
        (70.0, 30.0)
    """

    stiffness: np.ndarray

    @property
    def softest(self) -> float:
        """Smallest eigenvalue in Mandel's basis, GPa; it does not depend on the frame."""
        scale = 1 / _TO_VOIGT
        return float(np.linalg.eigvalsh(self.stiffness * np.outer(scale, scale))[0])

    @property
    def stable(self) -> bool:
        """Born's condition: every small strain costs energy."""
        return self.softest > 0

    def moduli(self, average: Average = "hill") -> tuple[float, float]:
        """Bulk and shear modulus, GPa.

        Args:
            average: "voigt" for equal strain in all grains, "reuss" for equal stress, or "hill"
                for the mean of both.
        """
        if average == "hill":
            return tuple(np.mean([self.moduli("voigt"), self.moduli("reuss")], axis=0).tolist())
        if average == "voigt":
            c = self.stiffness
            normal, mixed, shear = _sums(c)
            return (normal + 2 * mixed) / 9, (normal - mixed + 3 * shear) / 15
        normal, mixed, shear = _sums(np.linalg.inv(self.stiffness))
        return 1 / (normal + 2 * mixed), 15 / (4 * (normal - mixed) + 3 * shear)

    @property
    def anisotropy(self) -> float:
        """Universal index (Ranganathan, Ostoja-Starzewski, 2008); 0 for an isotropic crystal."""
        (kv, gv), (kr, gr) = self.moduli("voigt"), self.moduli("reuss")
        return 5 * gv / gr + kv / kr - 6


def _sums(matrix: np.ndarray) -> tuple[float, float, float]:
    """11 + 22 + 33, 12 + 13 + 23, and 44 + 55 + 66 of a (6, 6) matrix."""
    diagonal = np.diag(matrix)
    mixed = matrix[0, 1] + matrix[0, 2] + matrix[1, 2]
    return float(diagonal[:3].sum()), float(mixed), float(diagonal[3:].sum())


@dataclass(frozen=True)
class ElasticSettings:
    """Settings of an elastic tensor.

    Attributes:
        relax: how cell and atoms are brought to the minimum first; None to take the crystal as it
            is.
        ions: "relaxed" for atoms that follow the strain, as in experiment; "clamped" for atoms
            that keep their fractional coordinates, which is faster, and stiffer wherever symmetry
            leaves atoms free to move.
        strains: magnitudes of strain, each used with both signs.
        displacement: Å, by which atoms are displaced where they relax.
        symprec: Å, tolerance of the symmetry.
    """

    relax: RelaxSettings | None = TIGHT
    ions: Literal["relaxed", "clamped"] = "relaxed"
    strains: tuple[float, ...] = (0.01, 0.02)
    displacement: float = 0.05
    symprec: float = 0.01

    def __post_init__(self) -> None:
        if self.ions not in ("relaxed", "clamped"):
            raise RecipeError(f"ions is {self.ions!r}", fix="It is 'relaxed' or 'clamped'.")
        strains = self.strains
        if not strains or len(set(strains)) < len(strains) or not all(0 < e < 0.2 for e in strains):
            raise RecipeError(
                f"strains are {strains}", fix="They are different numbers between 0 and 0.2."
            )
        if not (self.displacement > 0 and self.symprec > 0):
            raise RecipeError("displacement and symprec must be positive")


@dataclass(frozen=True)
class Elasticity:
    """What was found for one crystal.

    Attributes:
        tensor: as asked for.
        clamped: with atoms that keep their fractional coordinates; the same where they don't move.
        cell: the primitive cell that was strained.
        pressure: GPa, what the cell is under at zero strain; compression positive.
        softest_mode: eV/Å², smallest stiffness of the atoms against displacements at fixed cell;
            NaN where none was displaced.
        n_evaluations: cells that the potential evaluated after the relaxation.
    """

    tensor: ElasticTensor
    clamped: ElasticTensor
    cell: Cell
    pressure: float
    softest_mode: float
    n_evaluations: int


def elasticity(
    structures: Sequence[Structure | Cell],
    potential: Potential,
    settings: ElasticSettings | None = None,
) -> list[Elasticity | Exception]:
    """Elastic tensors of B crystals.

    Args:
        structures: the crystals, in any cell; the primitive one is used.
        potential: gives forces and stress.
        settings: see :class:`ElasticSettings`.

    Returns:
        For each crystal its elasticity, order kept, or an exception that says why it has none. A
        crystal that is not stable has a tensor: see :attr:`ElasticTensor.stable`.
    """
    settings = settings or ElasticSettings()
    cells = equilibrium(structures, potential, settings.relax, settings.symprec)
    measurements = [c if isinstance(c, Exception) else _elasticity(c, settings) for c in cells]
    return measure(measurements, potential, stress=True)


def _elasticity(cell: Cell, settings: ElasticSettings) -> Measurement[Elasticity]:
    """The measurement of one crystal at its minimum."""
    symmetry = find_symmetry(cell, settings.symprec)
    turns = _nearest_rotations(symmetry.turns(cell.lattice))
    on_strain = np.einsum("kab,gca,lcd,gdb->gkl", _MANDEL, turns, _MANDEL, turns, optimize=True)
    volume, n_atoms = abs(float(np.linalg.det(cell.lattice))), len(cell.numbers)

    probes = _Probes(on_strain, settings.strains)
    strains = np.einsum("sk,kab->sab", probes.steps, _MANDEL)
    undisturbed, *results = yield [cell, *(_strained(cell, strain) for strain in strains)]
    pressure = -float(np.trace(_stress(undisturbed))) / 3 * GPA
    stress, forces = zip(*map(_in_material_frame, results, strains), strict=True)
    stiffness = probes.slopes(np.array(stress), on_strain)
    stiffness = (stiffness + stiffness.T) / 2
    clamped = _tensor(stiffness)
    n_evaluations = 1 + len(results)
    if settings.ions == "clamped" or n_atoms == 1:
        return Elasticity(clamped, clamped, cell, pressure, np.nan, n_evaluations)

    on_atoms = _on_atoms(turns, symmetry.images)
    relative = _relative_motions(n_atoms)
    coupling = -relative.T @ probes.slopes(np.array(forces), on_atoms)  # (3N - 3, 6)
    if np.abs(coupling).max() < UNCOUPLED:
        return Elasticity(clamped, clamped, cell, pressure, np.nan, n_evaluations)

    probes = _Probes(on_atoms, (settings.displacement,))
    results = yield [_displaced(cell, step) for step in probes.steps]
    springs = probes.slopes(np.array([_forces(result).ravel() for result in results]), on_atoms)
    springs = -relative.T @ springs @ relative
    springs, modes = np.linalg.eigh((springs + springs.T) / 2)
    given_way = _given_way(springs, modes.T @ coupling) / volume
    n_evaluations += len(results)
    relaxed = _tensor(stiffness - given_way)
    return Elasticity(relaxed, clamped, cell, pressure, float(springs[0]), n_evaluations)


class _Probes:
    """Steps along those axes of a space that its symmetry does not make equal.

    Args:
        group: (G, d, d) orthogonal matrices, the symmetry on vectors of the space.
        sizes: lengths of the steps, each taken in both directions unless they are equal.

    Attributes:
        steps: (n, d) float64.
    """

    def __init__(self, group: np.ndarray, sizes: Sequence[float]) -> None:
        self._group, self._sizes = group, sizes
        self._axes: list[int] = []
        n_operations, dimension = group.shape[:2]
        covered = np.zeros((dimension, dimension))
        while len(self._axes) < dimension:
            weight, vectors = np.linalg.eigh(covered)
            reached = (vectors[:, weight > 0.05] ** 2).sum(1)
            reached[self._axes] = 1.0
            axis = int(reached.argmin())
            if reached[axis] > 1 - SAME:
                break
            images = group[:, :, axis]
            covered += images.T @ images * (dimension / n_operations)
            self._axes.append(axis)
        # The operation that reverses an axis, if there is one, makes opposite steps equal.
        away = [np.abs(group[:, :, k] + np.eye(dimension)[k]).max(1) for k in self._axes]
        self._reversal = [int(a.argmin()) if a.min() < SAME else None for a in away]
        steps = []
        for axis, reversal in zip(self._axes, self._reversal, strict=True):
            for size in sizes:
                for sign in (1, -1) if reversal is None else (1,):
                    steps.append(sign * size * np.eye(dimension)[axis])
        self.steps = np.array(steps)

    def slopes(self, answers: np.ndarray, group: np.ndarray) -> np.ndarray:
        """(m, d) slopes of a quantity, by least squares.

        Args:
            answers: (n, m) the quantity after each step.
            group: (G, m, m) the symmetry on the quantity.
        """
        left = iter(answers)
        m, d = answers.shape[1], self._group.shape[1]
        total = 2 * sum(size**2 for size in self._sizes)
        cross, square = np.zeros((m, d)), np.zeros((d, d))
        for axis, reversal in zip(self._axes, self._reversal, strict=True):
            slope = np.zeros(m)
            for size in self._sizes:
                ahead = next(left)
                back = next(left) if reversal is None else group[reversal] @ ahead
                slope += size * (ahead - back) / total
            steps, slopes = self._group[:, :, axis], group @ slope
            cross += slopes.T @ steps
            square += steps.T @ steps
        return np.linalg.solve(square, cross.T).T


def _nearest_rotations(turns: np.ndarray) -> np.ndarray:
    """(G, 3, 3) orthogonal matrices, the nearest to those given."""
    left, _, right = np.linalg.svd(turns)
    return left @ right


def _on_atoms(turns: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(G, 3N, 3N) the operations on displacements and forces (N, 3), flattened."""
    n_operations, n = images.shape
    matrix = np.zeros((n_operations, n, 3, n, 3))
    operation, atom = np.indices(images.shape)
    matrix[operation, images, :, atom, :] = turns.transpose(0, 2, 1)[:, None]
    return matrix.reshape(n_operations, 3 * n, 3 * n)


def _relative_motions(n: int) -> np.ndarray:
    """(3N, 3N - 3) orthonormal columns: displacements that leave the atoms' mean in place."""
    together = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    full, _ = np.linalg.qr(np.hstack([together, np.eye(3 * n)[:, 3:]]))
    return full[:, 3:]


def _strained(cell: Cell, strain: np.ndarray) -> Cell:
    """The cell under a Green-Lagrange strain (3, 3), atoms with it."""
    return cell._replace(lattice=cell.lattice @ _deformation(strain))


def _displaced(cell: Cell, step: np.ndarray) -> Cell:
    """The cell with atoms moved by (3N,) Å."""
    return cell._replace(
        frac_coords=cell.frac_coords + step.reshape(-1, 3) @ np.linalg.inv(cell.lattice)
    )


def _deformation(strain: np.ndarray) -> np.ndarray:
    """The symmetric deformation gradient F of a strain, (F F - 1) / 2."""
    values, vectors = np.linalg.eigh(np.eye(3) + 2 * strain)
    return vectors * np.sqrt(values) @ vectors.T


def _forces(result: PotentialResult) -> np.ndarray:
    assert result.forces is not None, "a measurement is sent results with forces"
    return result.forces


def _stress(result: PotentialResult) -> np.ndarray:
    assert result.stress is not None, "a measurement with stress is sent results with stress"
    return (result.stress + result.stress.T) / 2


def _in_material_frame(
    result: PotentialResult, strain: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(6,) second Piola-Kirchhoff stress in Mandel's basis, eV/Å³, and (3N,) forces, eV/Å."""
    deformation = _deformation(strain)
    inverse = np.linalg.inv(deformation)
    stress = np.linalg.det(deformation) * inverse @ _stress(result) @ inverse
    return np.einsum("kab,ab->k", _MANDEL, stress), (_forces(result) @ deformation).ravel()


def _given_way(springs: np.ndarray, coupling: np.ndarray) -> np.ndarray:
    """(6, 6) eV, what the atoms' motion takes off the second derivative of the energy.

    Args:
        springs: (M,) eV/Å², stiffnesses of the modes, ascending.
        coupling: (M, 6) eV/Å, slope of the force on each mode with strain.

    Raises:
        UnsupportedError: if strain pushes the atoms along a mode that does not push back.
    """
    coupled = np.abs(coupling).max(1) >= UNCOUPLED
    if (bad := coupled & (springs < SOFT)).any():
        raise UnsupportedError(
            "not mechanically stable: strain moves the atoms along a mode of stiffness "
            f"{springs[bad][0]:.3g} eV/Å²"
        )
    return (coupling[coupled].T / springs[coupled]) @ coupling[coupled]


def _tensor(second_derivative: np.ndarray) -> ElasticTensor:
    """From Mandel's basis and eV/Å³ to Voigt's and GPa."""
    return ElasticTensor(second_derivative * np.outer(_TO_VOIGT, _TO_VOIGT) * GPA)
