"""Conventional cells as unconstrained numbers: every real vector is a valid lattice.

A cell is written by the Cholesky factor ``C`` of its metric (a along x, b in the xy plane), with
lengths divided by N^(1/3), N the number of atoms in the conventional cell. Six numbers describe
it without a constraint:

====  ==============================================  =======================================
u     definition                                      free for
====  ==============================================  =======================================
0     (ln C11 + ln C22 + ln C33) / 3, the scale       every crystal
1     ln C33 - (ln C11 + ln C22) / 2                  all but cubic
2     ln C22 - ln C11                                 triclinic, monoclinic, orthorhombic
3     C21 / C22  (cotangent of gamma)                 triclinic
4     C31 / C33  (cot beta if monoclinic)             triclinic, monoclinic
5     C32 / C33                                       triclinic
====  ==============================================  =======================================

``u[0]`` is a third of the logarithm of the volume per atom: it decides the energy more than
any other number of a crystal, so it has a coordinate of its own.
"""

from __future__ import annotations

import numpy as np

SCALE = 0
N_PARAMETERS = 6


def free_parameters() -> np.ndarray:
    """Which of the six numbers a crystal of each space group draws.

    Returns:
        (231, 6) bool, row ``g`` for space group ``g``; row 0 is unused.
    """
    free = np.zeros((231, N_PARAMETERS), dtype=bool)
    free[1:, 0] = True
    free[1:195, 1] = True
    free[1:75, 2] = True
    free[1:3, 3:] = True
    free[3:16, 4] = True
    return free


def to_parameters(lattice: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Cell lengths and angles to the six unconstrained numbers.

    Args:
        lattice: (B, 6) a, b, c in Å and alpha, beta, gamma in degrees, conventional cell.
        n_atoms: (B,) atoms in the conventional cell.

    Returns:
        (B, 6) float64.
    """
    lattice = np.asarray(lattice, dtype=np.float64)
    lengths = lattice[:, :3] / np.cbrt(np.maximum(n_atoms, 1))[:, None]
    cos = np.cos(np.deg2rad(lattice[:, 3:]))
    sin_gamma = np.sin(np.deg2rad(lattice[:, 5]))
    c11 = lengths[:, 0]
    c21, c22 = lengths[:, 1] * cos[:, 2], lengths[:, 1] * sin_gamma
    c31 = lengths[:, 2] * cos[:, 1]
    c32 = lengths[:, 2] * (cos[:, 0] - cos[:, 1] * cos[:, 2]) / sin_gamma
    c33 = np.sqrt(np.maximum(lengths[:, 2] ** 2 - c31**2 - c32**2, 1e-12))
    ln1, ln2, ln3 = np.log(c11), np.log(c22), np.log(c33)
    return np.stack(
        [
            (ln1 + ln2 + ln3) / 3,
            ln3 - (ln1 + ln2) / 2,
            ln2 - ln1,
            c21 / c22,
            c31 / c33,
            c32 / c33,
        ],
        axis=1,
    )


def to_lattice(parameters: np.ndarray, n_atoms: np.ndarray, space_group: np.ndarray) -> np.ndarray:
    """The six numbers back to cell lengths and angles; the inverse of :func:`to_parameters`.

    Numbers that are not free in the space group are replaced by what its crystal system demands.

    Args:
        parameters: (B, 6).
        n_atoms: (B,) atoms in the conventional cell.
        space_group: (B,) 1..230.

    Returns:
        (B, 6) float64, Å and degrees.
    """
    u = np.where(free_parameters()[space_group], parameters, 0.0).astype(np.float64)
    hexagonal = (space_group >= 143) & (space_group <= 194)
    # b = a at 120 degrees: C22 = a sin 120, C21 = a cos 120
    u[hexagonal, 2] = np.log(np.sqrt(3) / 2)
    u[hexagonal, 3] = -1 / np.sqrt(3)
    ln12 = u[:, 0] - u[:, 1] / 3  # mean of ln C11 and ln C22
    c33 = np.exp(u[:, 0] + 2 * u[:, 1] / 3)
    c11, c22 = np.exp(ln12 - u[:, 2] / 2), np.exp(ln12 + u[:, 2] / 2)
    c21, c31, c32 = u[:, 3] * c22, u[:, 4] * c33, u[:, 5] * c33
    b = np.hypot(c21, c22)
    c = np.sqrt(c31**2 + c32**2 + c33**2)
    cos = np.stack([(c21 * c31 + c22 * c32) / (b * c), c31 / c, c21 / b], axis=1)
    angles = np.rad2deg(np.arccos(np.clip(cos, -1.0, 1.0)))
    lengths = np.stack([c11, b, c], axis=1) * np.cbrt(np.maximum(n_atoms, 1))[:, None]
    return np.concatenate([lengths, angles], axis=1)
