"""The stiffness of a crystal guessed from its bonds, which a relaxation starts from.

Every pair of atoms is a spring that softens with its length in units of the covalent radii, as in
the model Hessian of Lindh et al., Chem. Phys. Lett. 241, 423 (1995). Strain stretches the same
springs, so that atoms and cell are described together (compare Packwood et al., J. Chem. Phys.
144, 164109, 2016). What counts is which directions are stiff and which are soft; the scale that
all have in common is measured on the way.

Coordinates of a cell of N atoms are 3 N Å, how far the atoms have moved relative to the cell, and
six numbers, N times the strain in the orthonormal basis :data:`STRAINS`, so that each is felt
about as an atom's coordinate is.
"""

from __future__ import annotations

import numpy as np

from nucleate.errors import InputError
from nucleate.physics.cells import Cell, find_bonds

STIFFNESS = 5.0  # eV/Å², of a bond as long as the covalent radii together
DECAY = 3.0  # how fast it softens with the square of the relative length
TRANSVERSE = 0.1  # stiffness across a bond, relative to that along it
FLOOR = 0.5  # eV/Å², what every coordinate has at least
CUTOFF = 6.0  # Å


def _symmetric_basis() -> np.ndarray:
    basis = np.zeros((6, 3, 3))
    for k, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        basis[k, a, b] = basis[k, b, a] = 1.0 if a == b else 0.5**0.5
    return basis


STRAINS = _symmetric_basis()
"""(6, 3, 3) orthonormal basis of the symmetric matrices."""


def spring_stiffness(cell: Cell) -> np.ndarray:
    """Second derivatives of the energy with respect to all coordinates, positive definite.

    A cell whose bonds can't be listed, as an atom has none, has the floor alone.

    Args:
        cell: a crystal of N atoms.

    Returns:
        (3 N + 6, 3 N + 6) eV/Å².
    """
    n = len(cell.numbers)
    stiffness = np.diag(np.append(np.full(3 * n, FLOOR), np.full(6, FLOOR / n)))
    try:
        bonds = find_bonds(cell, CUTOFF, CUTOFF)
    except InputError:
        return stiffness
    from ase.data import covalent_radii

    first, second = bonds.first, bonds.second
    radii = covalent_radii[cell.numbers]
    relative = bonds.length / (radii[first] + radii[second])
    constant = STIFFNESS * np.exp(DECAY * np.minimum(1.0 - relative**2, 1.0))
    unit = bonds.vector / bonds.length[:, None]
    spring = TRANSVERSE * np.eye(3) + (1 - TRANSVERSE) * unit[:, :, None] * unit[:, None, :]
    spring *= constant[:, None, None]
    stretch = np.einsum("ej,kji->eik", bonds.vector, STRAINS) / n  # (E, 3, 6)
    pull = spring @ stretch
    atoms, mixed = np.zeros((n, n, 3, 3)), np.zeros((n, 3, 6))
    for i, j, sign in ((first, first, 1), (second, second, 1), (first, second, -1)):
        np.add.at(atoms, (i, j), sign * spring)
    np.add.at(atoms, (second, first), -spring)
    np.add.at(mixed, second, pull)
    np.add.at(mixed, first, -pull)
    stiffness[: 3 * n, : 3 * n] += atoms.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
    stiffness[: 3 * n, 3 * n :] += mixed.reshape(3 * n, 6)
    stiffness[3 * n :, : 3 * n] += mixed.reshape(3 * n, 6).T
    stiffness[3 * n :, 3 * n :] += np.einsum("eik,eil->kl", stretch, pull)
    return stiffness
