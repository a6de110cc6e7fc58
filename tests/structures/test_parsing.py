"""What names the numbers of a cell."""

from __future__ import annotations

import numpy as np

from nucleate.structures.parsing import cell_digest


def test_digest_sees_the_last_digit():
    frac = np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]])
    cell = np.diag([3.0, 4.0, 5.0]), np.array([3, 8]), frac
    moved = (cell[0], cell[1], cell[2] + np.array([0, 0, 1e-15]))
    assert cell_digest(cell) == cell_digest((cell[0].copy(), cell[1], cell[2]))
    assert cell_digest(cell) != cell_digest(moved)
