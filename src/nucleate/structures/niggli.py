"""Niggli reduction as pymatgen does it, on plain numbers.

``Lattice.get_niggli_reduced_lattice`` follows R. W. Grosse-Kunstleve, N. K. Sauter and P. D. Adams,
Acta Cryst. A 60 (2004) 1, and then looks the reduced lengths and angles up among the vectors of
the lattice, to within 1 degree. Here the steps act on the basis itself, which needs no looking up.
Where the looking up could have given another basis, one whose angles differ by up to that degree,
pymatgen is asked.
"""

from __future__ import annotations

from itertools import product

import numpy as np

TOL = 1e-5  # of pymatgen, times the cube root of the volume
MAX_STEPS = 200
SAME_ANGLE = 1e-3  # degrees
SAME_CELL = 1.01  # degrees, a little more than pymatgen allows
_SECOND, _THIRD = [1, 0, 0], [2, 2, 1]  # edges that alpha, beta and gamma are between
_SHORT = np.array([n for n in product((-1, 0, 1), repeat=3) if any(n)], dtype=float)

Vector = list[float]


def niggli(matrices: np.ndarray) -> np.ndarray:
    """(B, 3, 3) row vectors of the Niggli cells of lattices, right-handed, not turned, Å.

    Args:
        matrices: (B, 3, 3) row vectors, Å.

    Returns:
        Row vectors; NaN where pymatgen finds none.
    """
    e = TOL * np.abs(np.linalg.det(matrices)) ** (1.0 / 3.0)
    found = np.full(matrices.shape, np.nan)
    for row, (matrix, small) in enumerate(zip(matrices.tolist(), e.tolist(), strict=True)):
        basis = _steps(_shortened(matrix), small)
        if basis is not None:
            found[row] = basis
    unclear = np.isnan(found).any(axis=(1, 2))
    unclear[~unclear] = _ambiguous(found[~unclear], e[~unclear])
    for row in np.flatnonzero(unclear).tolist():
        found[row] = pymatgens_niggli(matrices[row])
    return found * np.sign(np.linalg.det(found))[:, None, None]


def pymatgens_niggli(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) row vectors of ``Lattice.get_niggli_reduced_lattice``; NaN where there are none."""
    from pymatgen.core import Lattice

    try:
        return np.array(Lattice(matrix).get_niggli_reduced_lattice().matrix)
    except (ValueError, ArithmeticError, IndexError):
        return np.full((3, 3), np.nan)


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _less(a: Vector, b: Vector, n: float) -> Vector:
    """``a - n b``."""
    return [a[0] - n * b[0], a[1] - n * b[1], a[2] - n * b[2]]


def _shortened(basis: list[Vector]) -> list[Vector]:
    """A basis in which no vector gets shorter by whole multiples of another."""
    for _ in range(MAX_STEPS):
        basis.sort(key=lambda v: _dot(v, v))
        changed = False
        for i, j in ((1, 0), (2, 0), (2, 1)):
            n = _dot(basis[i], basis[j]) / _dot(basis[j], basis[j])
            if abs(n) > 0.5 + 1e-9:
                basis[i] = _less(basis[i], basis[j], float(round(n)))
                changed = True
        if not changed:
            break
    return basis


def _sign(x: float, e: float) -> int:
    return 0 if abs(x) < e else (1 if x > 0 else -1)


def _steps(basis: list[Vector], e: float) -> list[Vector] | None:
    """The steps A1 to A8; None if they come to no end."""
    a, b, c = basis
    for _ in range(MAX_STEPS):
        aa, bb, cc = _dot(a, a), _dot(b, b), _dot(c, c)
        x, y, z = 2 * _dot(b, c), 2 * _dot(a, c), 2 * _dot(a, b)
        if bb + e < aa or (abs(aa - bb) < e and abs(x) > abs(y) + e):  # A1
            a, b, c = _less(_ZERO, b, 1), _less(_ZERO, a, 1), _less(_ZERO, c, 1)
            aa, bb, x, y = bb, aa, y, x
        if cc + e < bb or (abs(bb - cc) < e and abs(y) > abs(z) + e):  # A2
            a, b, c = _less(_ZERO, a, 1), _less(_ZERO, c, 1), _less(_ZERO, b, 1)
            continue
        i, j, k = _turns(_sign(x, e), _sign(y, e), _sign(z, e))  # A3, A4
        a, b, c = _less(_ZERO, a, -i), _less(_ZERO, b, -j), _less(_ZERO, c, -k)
        x, y, z = x * j * k, y * i * k, z * i * j
        if abs(x) > bb + e or (abs(x - bb) < e and z - e > 2 * y) or (abs(x + bb) < e and -e > z):
            c = _less(c, b, 1 if x > 0 else -1)  # A5
        elif abs(y) > aa + e or (abs(aa - y) < e and z - e > 2 * x) or (abs(aa + y) < e and -e > z):
            c = _less(c, a, 1 if y > 0 else -1)  # A6
        elif abs(z) > aa + e or (abs(aa - z) < e and y - e > 2 * x) or (abs(aa + z) < e and -e > y):
            b = _less(b, a, 1 if z > 0 else -1)  # A7
        elif -e > x + y + z + aa + bb or (abs(x + y + z + aa + bb) < e < z + (aa + y) * 2):  # A8
            c = _less(_less(c, a, -1), b, -1)
        else:
            return [a, b, c]
    return None


_ZERO: Vector = [0.0, 0.0, 0.0]


def _turns(x: int, y: int, z: int) -> tuple[int, int, int]:
    """Signs that make the angles all acute or none, from the signs of their cosines."""
    if x * y * z == 1:
        return (-1 if x == -1 else 1), (-1 if y == -1 else 1), (-1 if z == -1 else 1)
    i, j, k = (-1 if x == 1 else 1), (-1 if y == 1 else 1), (-1 if z == 1 else 1)
    if i * j * k == -1:
        if z == 0:
            k = -1
        elif y == 0:
            j = -1
        elif x == 0:
            i = -1
    return i, j, k


def _ambiguous(bases: np.ndarray, e: np.ndarray) -> np.ndarray:
    """(B,) whether three vectors as long as the edges make almost the angles of the cell, not them.

    Args:
        bases: (B, 3, 3) row vectors, Å.
        e: (B,) tolerances.
    """
    lengths = np.linalg.norm(bases, axis=2)
    vectors = _SHORT @ bases
    distances = np.linalg.norm(vectors, axis=2)
    unit = vectors / distances[..., None]
    edges = bases / lengths[..., None]
    apart = np.abs(distances[..., None] / lengths[:, None] - 1.0)
    like = apart < (2.0 * e + 1e-9)[:, None, None]
    angles = _degrees((edges[:, _SECOND] * edges[:, _THIRD]).sum(axis=-1))
    result = np.zeros(len(bases), bool)
    for n, (i, j) in enumerate(zip(_SECOND, _THIRD, strict=True)):
        half = like[:, : len(_SHORT) // 2, i]  # one of each +- pair makes all angles already
        cell, first, second = np.nonzero(half[:, :, None] & like[:, None, :, j])
        away = np.abs(
            _degrees((unit[cell, first] * unit[cell, second]).sum(axis=1)) - angles[cell, n]
        )
        result[cell[(away > SAME_ANGLE) & (away < SAME_CELL)]] = True
    for row in np.flatnonzero(result):  # with a third vector, too
        a, b, c = (unit[row, way] for way in like[row].T)
        alpha, beta, gamma = (
            np.abs(_degrees(first @ second.T) - angle)
            for first, second, angle in zip((b, a, a), (c, c, b), angles[row], strict=True)
        )
        away = np.maximum(np.maximum(alpha, beta[:, None]), gamma[:, :, None])
        result[row] = ((away > SAME_ANGLE) & (away < SAME_CELL)).any()
    return result


def _degrees(cosines: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
