"""Phonons of many crystals at once, by phonopy (Togo, J. Phys. Soc. Jpn. 92, 012001, 2023).

phonopy says which atoms of a supercell to displace, the potential gives the forces on all
supercells of all crystals together, and phonopy makes force constants and frequencies of them.
What polar crystals need beside forces, Born charges, is left out: their longitudinal optical modes
lack the splitting at zero wave vector.

The mesh of wave vectors holds those that fit the supercell, at which frequencies are exact.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import MissingDependencyError, NucleateError, RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.measurement import Measurement, measure
from nucleate.physics.relax import TIGHT, RelaxSettings, equilibrium

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.protocols import Potential

_KELVIN_PER_THZ = 47.99243073  # h / k_B (SI 2019)
_BOLTZMANN_PER_U = 8.31446261815324  # k_B per atomic mass unit, J/(g K)
IMAGINARY = 0.1  # THz: frequencies closer to zero are not told from zero
_PHONOPY_TOLERANCE = 1e-3  # Å, of phonopy's own search for symmetry


def require_phonopy() -> None:
    """Refuse to start without phonopy.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    if importlib.util.find_spec("phonopy") is None:
        raise MissingDependencyError(
            "phonons need the package phonopy",
            "it is not installed",
            'pip install "nucleate[eval]"',
        )


@dataclass(frozen=True)
class PhononSettings:
    """Settings of a phonon calculation.

    Attributes:
        relax: how cell and atoms are brought to the minimum first; None to take the crystal as it
            is.
        min_length: Å, the shortest distance between an atom of the supercell and its image.
        displacement: Å, by which atoms are displaced; less, and the roughness of a learnt potential
            shows as imaginary modes.
        mesh: Å, wave vectors are as dense as those of a supercell of this length, or denser.
        symprec: Å, tolerance of the symmetry that tells what is primitive.
    """

    relax: RelaxSettings | None = TIGHT
    min_length: float = 10.0
    displacement: float = 0.03
    mesh: float = 40.0
    symprec: float = 0.01

    def __post_init__(self) -> None:
        if not min(self.min_length, self.displacement, self.mesh, self.symprec) > 0:
            raise RecipeError("min_length, displacement, mesh and symprec must be positive")


@dataclass(frozen=True)
class Phonons:
    """Vibrations of one crystal.

    Attributes:
        frequencies: (Q, 3N) float64, THz, ascending; imaginary ones are negative.
        weights: (Q,) float64, share of each wave vector, of sum 1.
        mass: u, of the N atoms of the primitive cell, which the modes belong to.
        supercell: how many primitive cells along each of its vectors.
        n_displacements: supercells whose forces were needed.
    """

    frequencies: np.ndarray
    weights: np.ndarray
    mass: float
    supercell: tuple[int, int, int]
    n_displacements: int

    @property
    def lowest(self) -> float:
        """Lowest frequency, THz; negative if imaginary."""
        return float(self.frequencies.min())

    @property
    def imaginary(self) -> float:
        """Share of modes with an imaginary frequency."""
        return float(self.weights @ (self.frequencies < -IMAGINARY).mean(1))

    def heat_capacity(self, temperature: float) -> float:
        """Heat capacity at constant volume, J/(g K); imaginary modes have none.

        Args:
            temperature: K.
        """
        if temperature <= 0:
            return 0.0
        x = np.abs(self.frequencies) * _KELVIN_PER_THZ / temperature
        half = np.clip(x / 2, 1e-6, 300.0)
        modes = np.where(self.frequencies < -IMAGINARY, 0.0, (half / np.sinh(half)) ** 2)
        return float(self.weights @ modes.sum(1)) * _BOLTZMANN_PER_U / self.mass


def phonons(
    structures: Sequence[Structure | Cell],
    potential: Potential,
    settings: PhononSettings | None = None,
) -> list[Phonons | Exception]:
    """Phonons of B crystals.

    Args:
        structures: the crystals, in any cell; the primitive one is used.
        potential: gives forces, and stress if something relaxes.
        settings: see :class:`PhononSettings`.

    Returns:
        For each crystal its phonons, order kept, or an exception that says why it has none.

    Raises:
        MissingDependencyError: phonopy isn't installed.
    """
    require_phonopy()
    settings = settings or PhononSettings()
    cells = equilibrium(structures, potential, settings.relax, settings.symprec)
    measurements = [c if isinstance(c, Exception) else _phonons(c, settings) for c in cells]
    return measure(measurements, potential)


def _phonons(cell: Cell, settings: PhononSettings) -> Measurement[Phonons]:
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms
    from pymatgen.core import Element

    repeats = supercell_of(cell.lattice, settings.min_length)
    unit = PhonopyAtoms(
        cell=cell.lattice,
        scaled_positions=cell.frac_coords,
        numbers=cell.numbers,
        # phonopy's own table ends where elements have no stable isotope, as Pu does
        masses=[float(Element.from_Z(int(z)).atomic_mass) for z in cell.numbers],
    )
    crystal = Phonopy(
        unit,
        supercell_matrix=np.diag(repeats),
        primitive_matrix=np.eye(3),
        symprec=_PHONOPY_TOLERANCE,
    )
    crystal.generate_displacements(distance=settings.displacement)
    displaced = crystal.supercells_with_displacements or []
    results = yield [_cell(atoms) for atoms in displaced]
    crystal.forces = np.array([result.forces for result in results])
    crystal.produce_force_constants(show_drift=False)
    crystal.symmetrize_force_constants(show_drift=False)
    lengths = np.linalg.norm(cell.lattice, axis=1)
    mesh = [
        int(n * np.ceil(settings.mesh / (n * a))) for n, a in zip(repeats, lengths, strict=True)
    ]
    crystal.run_mesh(mesh, is_gamma_center=True)
    found: dict[str, Any] = dict(crystal.get_mesh_dict())
    frequencies = np.array(found["frequencies"], dtype=np.float64)
    if not np.isfinite(frequencies).all():
        raise NucleateError("phonons: frequencies that are not finite")
    weights = np.array(found["weights"], dtype=np.float64)
    mass = float(np.sum(crystal.primitive.masses))
    return Phonons(frequencies, weights / weights.sum(), mass, repeats, len(results))


def _cell(atoms: Any) -> Cell:
    return Cell(
        np.array(atoms.cell, dtype=np.float64),
        np.array(atoms.numbers, dtype=np.int64),
        np.array(atoms.scaled_positions, dtype=np.float64),
    )


def supercell_of(lattice: np.ndarray, min_length: float) -> tuple[int, int, int]:
    """How often to repeat a cell so that no atom is nearer to its image than a length.

    Args:
        lattice: (3, 3) Å, rows.
        min_length: Å.
    """
    repeats = np.ceil(min_length / np.linalg.norm(lattice, axis=1) - 1e-6).astype(int)
    directions = np.array([v for v in product((-1, 0, 1), repeat=3) if any(v)])
    while True:
        lengths = np.linalg.norm(directions @ (lattice * repeats[:, None]), axis=1)
        if lengths.min() >= min_length - 1e-6:
            return tuple(repeats.tolist())
        spacing = 1 / np.linalg.norm(np.linalg.inv(lattice * repeats[:, None]), axis=0)
        repeats[spacing.argmin()] += 1
