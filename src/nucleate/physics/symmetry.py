"""Symmetry of a cell: its operations, and the primitive cell in the same orientation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nucleate.errors import InputError
from nucleate.physics.cells import Cell


class Symmetry(NamedTuple):
    """The G operations of a space group on a cell of N atoms.

    Attributes:
        rotations: (G, 3, 3) float64, on columns of fractional coordinates.
        images: (G, N) int64, the atom that each atom is moved to.
    """

    rotations: np.ndarray
    images: np.ndarray

    def turns(self, lattice: np.ndarray) -> np.ndarray:
        """(G, 3, 3) Cartesian rotations of row vectors, ``moved = vector @ turn``."""
        inverse = np.linalg.inv(lattice)
        return np.einsum("ij,gkj,kl->gil", inverse, self.rotations, lattice)


def _dataset(cell: Cell, symprec: float) -> Any:
    import moyopy

    try:
        return moyopy.MoyoDataset(
            moyopy.Cell(cell.lattice.tolist(), cell.frac_coords.tolist(), cell.numbers.tolist()),
            symprec=symprec,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError("no symmetry could be found", str(error)) from error


def find_symmetry(cell: Cell, symprec: float) -> Symmetry:
    """The operations of a cell.

    Args:
        cell: the crystal.
        symprec: Å, how far an atom may be from its image.

    Raises:
        InputError: if the search fails.
    """
    found = _dataset(cell, symprec).operations
    rotations = np.array(found.rotations, dtype=np.float64)
    images = []
    for rotation, translation in zip(rotations, np.array(found.translations), strict=True):
        moved = cell.frac_coords @ rotation.T + translation
        away = moved[:, None] - cell.frac_coords[None]
        away = (away - np.round(away)) @ cell.lattice
        distance = (away**2).sum(2) + 1e6 * (cell.numbers[:, None] != cell.numbers[None])
        images.append(distance.argmin(1))
    return Symmetry(rotations, np.array(images))


def primitive_cell(cell: Cell, symprec: float) -> Cell:
    """The standard primitive cell, exactly symmetric and not turned; its handedness is right.

    Args:
        cell: the crystal, in any cell.
        symprec: Å, how far an atom may be from its image.

    Raises:
        InputError: if the search fails.
    """
    found = _dataset(cell, symprec)
    standard = found.prim_std_cell
    return Cell(
        np.array(standard.basis) @ np.array(found.std_rotation_matrix),
        np.array(standard.numbers, dtype=np.int64),
        np.array(standard.positions, dtype=np.float64).reshape(-1, 3),
    )
