"""Tables of the 230 space groups: Wyckoff positions, centring, free lattice parameters.

Settings follow the International Tables for Crystallography, Vol. A, as tabulated by PyXtal
(S. Fredericks et al., Comput. Phys. Commun. 261, 107810 (2021), MIT licence): monoclinic unique
axis b, hexagonal axes for rhombohedral groups, origin choice 2. They coincide with
``moyopy.Setting.standard()``.

Indices: space group ``g`` is row ``g - 1``; letter 0 means no site, ``a`` = 1, ..., ``z`` = 26,
``A`` = 27 (group 47 only). The first operation of every position is lower triangular and
idempotent with a diagonal of 0 and 1, so a coordinate is independent exactly where that diagonal
holds 1, and every operation of the position depends on independent coordinates alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

N_SPACE_GROUPS = 230
N_LETTERS = 28
TRANSLATION_UNIT = 24

_PRIMITIVE_BASES = {
    b"P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    b"A": ((1, 0, 0), (0, 1 / 2, -1 / 2), (0, 1 / 2, 1 / 2)),
    b"C": ((1 / 2, -1 / 2, 0), (1 / 2, 1 / 2, 0), (0, 0, 1)),
    b"I": ((-1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (1 / 2, 1 / 2, -1 / 2)),
    b"F": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    b"R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}
_CENTRING_ORDER = {b"P": 1, b"A": 2, b"C": 2, b"I": 2, b"F": 4, b"R": 3}


@dataclass(frozen=True, eq=False)
class WyckoffTables:
    """Wyckoff positions of all space groups as arrays.

    Attributes:
        multiplicity: (230, 28) int16, atoms in the conventional cell; 0 where there is no such
            position.
        n_letters: (230,) int16, number of positions of the group (the highest letter index).
        first: (230, 28) int32, row of the position's first operation in ``rotation``.
        rotation: (K, 3, 3) int8, coordinate operations of all positions, position by position;
            of each, the first ``multiplicity / centring_order`` are unrelated by centring.
        translation: (K, 3) int8, in units of 1/24.
        on_first: (J,) int32, rows of ``rotation`` whose image lies on the first operation of their
            position, position by position: the choices an orbit leaves for its representative.
        first_on_first: (230, 28) int32, the position's first row in ``on_first``.
        n_on_first: (230, 28) int16, number of such rows; 0 for no site.
        free: (230, 28, 3) bool, coordinates that are drawn independently.
        dof: (230, 28) int8, number of independent coordinates; 0 for no site.
        lattice_type: (230,) bytes: P, A, C, I, F or R.
        centring_order: (230,) int8, lattice points in the conventional cell.
        primitive_basis: (230, 3, 3) float64, rows are primitive vectors in conventional ones.
    """

    multiplicity: np.ndarray
    n_letters: np.ndarray
    first: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    on_first: np.ndarray
    first_on_first: np.ndarray
    n_on_first: np.ndarray
    free: np.ndarray
    dof: np.ndarray
    lattice_type: np.ndarray
    centring_order: np.ndarray
    primitive_basis: np.ndarray

    @property
    def first_rotation(self) -> np.ndarray:
        """(230, 28, 3, 3) int8, rotation of each position's first operation; 0 for no site."""
        return self.rotation[self.first] * self._exists[..., None, None]

    @property
    def first_translation(self) -> np.ndarray:
        """(230, 28, 3) float64, translation of the first operation; 0 for no site."""
        return self.translation[self.first] * self._exists[..., None] / TRANSLATION_UNIT

    @property
    def _exists(self) -> np.ndarray:
        return self.multiplicity > 0

    def operations(self, space_group: int, letter: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinate operations of one position.

        Returns:
            Rotations (m, 3, 3) int8 and translations (m, 3) float64; images of a point x on
            the position are ``rotation @ x + translation``.
        """
        m = int(self.multiplicity[space_group - 1, letter])
        first = int(self.first[space_group - 1, letter])
        rows = slice(first, first + m)
        return self.rotation[rows], self.translation[rows] / TRANSLATION_UNIT

    def general_operations(self, space_group: int) -> tuple[np.ndarray, np.ndarray]:
        """All operations of the group modulo lattice translations of the conventional cell."""
        return self.operations(space_group, int(self.n_letters[space_group - 1]))

    def centring(self, space_group: int) -> np.ndarray:
        """(c, 3) float64, lattice points of the conventional cell, the origin first."""
        rotation, translation = self.general_operations(space_group)
        pure = (rotation == np.eye(3, dtype=np.int8)).all((1, 2))
        return translation[pure] % 1.0


@lru_cache(maxsize=1)
def tables() -> WyckoffTables:
    """The tables, read once in a process; arrays are read-only."""
    with files("nucleate").joinpath("data/wyckoff.npz").open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        arrays = {name: stored[name] for name in stored.files}
    multiplicity = arrays["multiplicity"]
    exists = multiplicity > 0
    diagonal = np.einsum("...ii->...i", arrays["rotation"][arrays["first"]]) == 1
    free = diagonal & exists[..., None]
    lattice_type = arrays["lattice_type"]
    on_first, first_on_first, n_on_first = _on_first(arrays)
    result = WyckoffTables(
        multiplicity=multiplicity,
        n_letters=exists.sum(1).astype(np.int16),
        first=arrays["first"],
        rotation=arrays["rotation"],
        translation=arrays["translation"],
        on_first=on_first,
        first_on_first=first_on_first,
        n_on_first=n_on_first,
        free=free,
        dof=free.sum(-1).astype(np.int8),
        lattice_type=lattice_type,
        centring_order=np.array([_CENTRING_ORDER[t] for t in lattice_type.tolist()], np.int8),
        primitive_basis=np.array([_PRIMITIVE_BASES[t] for t in lattice_type.tolist()], float),
    )
    for array in vars(result).values():
        array.setflags(write=False)
    return result


def _on_first(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operations whose image lies on the position's first operation, modulo lattice vectors."""
    multiplicity, first = arrays["multiplicity"], arrays["first"]
    exists = multiplicity > 0
    starts = first[exists]
    owner = np.searchsorted(starts, np.arange(len(arrays["rotation"])), side="right") - 1
    rotation = arrays["rotation"].astype(np.int16)
    translation = arrays["translation"].astype(np.int16)
    r0, t0 = rotation[starts][owner], translation[starts][owner]
    same = (r0 @ rotation == rotation).all((1, 2))
    moved = np.einsum("nij,nj->ni", r0, translation) + t0 - translation
    rows = np.flatnonzero(same & (moved % TRANSLATION_UNIT == 0).all(1)).astype(np.int32)
    first_row, count = np.zeros_like(first), np.zeros_like(multiplicity)
    first_row[exists] = np.searchsorted(rows, starts)
    count[exists] = np.bincount(owner[rows], minlength=len(starts))
    return rows, first_row, count


def letter_name(index: int) -> str:
    """Name of a letter index: 1 -> "a", 27 -> "A"; empty for no site."""
    return "" if index == 0 else chr(ord("a") + index - 1) if index <= 26 else "A"


def crystal_system(space_group: np.ndarray) -> np.ndarray:
    """Index of the crystal system of each group.

    0 triclinic, 1 monoclinic, 2 orthorhombic, 3 tetragonal, 4 trigonal, 5 hexagonal, 6 cubic.
    """
    return np.searchsorted([2, 15, 74, 142, 167, 194], np.asarray(space_group), side="left")


def free_lattice_mask(space_group: np.ndarray) -> np.ndarray:
    """Which of a, b, c, alpha, beta, gamma the crystal system leaves free.

    Args:
        space_group: (...,) int, 1..230.

    Returns:
        (..., 6) bool.
    """
    mask = np.zeros((7, 6), dtype=bool)
    mask[0] = True
    mask[1, [0, 1, 2, 4]] = True
    mask[2, :3] = True
    mask[3:6, [0, 2]] = True
    mask[6, 0] = True
    return mask[crystal_system(space_group)]


def symmetrise_lattice(space_group: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Impose the metric of the crystal system, keeping the free parameters.

    Args:
        space_group: (...,) int, 1..230.
        lattice: (..., 6), a, b, c in Å, alpha, beta, gamma in degrees, conventional cell.

    Returns:
        (..., 6), same dtype as ``lattice``.
    """
    system = crystal_system(space_group)
    out = np.array(lattice, copy=True)
    b_is_a = system >= 3
    out[..., 1] = np.where(b_is_a, out[..., 0], out[..., 1])
    out[..., 2] = np.where(system == 6, out[..., 0], out[..., 2])
    out[..., 3] = np.where(system >= 1, 90.0, out[..., 3])
    out[..., 4] = np.where(system >= 2, 90.0, out[..., 4])
    hexagonal = (system == 4) | (system == 5)
    out[..., 5] = np.where(hexagonal, 120.0, np.where(system >= 1, 90.0, out[..., 5]))
    return out


def lattice_matrix(lattice: np.ndarray) -> np.ndarray:
    """Row vectors of cells given by lengths and angles.

    c lies along z and a in the x-z plane, the convention of ``pymatgen.core.Lattice``.

    Args:
        lattice: (..., 6), Å and degrees.

    Returns:
        (..., 3, 3) float64, Å; NaN where no cell has such angles.
    """
    lattice = np.asarray(lattice, dtype=np.float64)
    a, b, c = lattice[..., 0], lattice[..., 1], lattice[..., 2]
    angles = np.radians(lattice[..., 3:])
    cos, sin = np.cos(angles), np.sin(angles)
    cos = np.where(lattice[..., 3:] == 90.0, 0.0, cos)
    with np.errstate(invalid="ignore", divide="ignore"):
        cos_gamma_star = (cos[..., 0] * cos[..., 1] - cos[..., 2]) / (sin[..., 0] * sin[..., 1])
        sin_gamma_star = np.sqrt(1.0 - cos_gamma_star**2)
    zero = np.zeros_like(a)
    rows = (
        (a * sin[..., 1], zero, a * cos[..., 1]),
        (-b * sin[..., 0] * cos_gamma_star, b * sin[..., 0] * sin_gamma_star, b * cos[..., 0]),
        (zero, zero, c),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def lattice_parameters(matrix: np.ndarray) -> np.ndarray:
    """Lengths and angles of cells given by row vectors.

    Args:
        matrix: (..., 3, 3), Å.

    Returns:
        (..., 6) float64, a, b, c in Å, alpha, beta, gamma in degrees.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    lengths = np.linalg.norm(matrix, axis=-1)
    unit = matrix / lengths[..., None]
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = [np.einsum("...i,...i", unit[..., i, :], unit[..., j, :]) for i, j in pairs]
    angles = np.degrees(np.arccos(np.clip(np.stack(cosines, axis=-1), -1.0, 1.0)))
    return np.concatenate([lengths, angles], axis=-1)
