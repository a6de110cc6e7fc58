"""A made-up table of rock salts, with labels that follow from cell and elements."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nucleate.physics.cells import Cell

CATIONS, ANIONS = (3, 11, 12, 20, 30), (8, 16, 34, 9, 17)


def rock_salts(seed: int = 0) -> list[Cell]:
    """50 primitive cells, two of each formula, each stretched along z."""
    generator = np.random.default_rng(seed)
    cells = []
    for cation, anion in 2 * list(product(CATIONS, ANIONS)):
        lattice = generator.uniform(2.25, 3.5) * (1.0 - np.eye(3))
        lattice[:, 2] *= generator.uniform(0.8, 1.25)
        cells.append(Cell(lattice, np.array([cation, anion]), np.array([[0.0] * 3, [0.5] * 3])))
    return cells


def label(cell: Cell) -> dict[str, Any]:
    """Volume of an atom, Å³; a tensor whose mean it is; whether the anion is a chalcogen."""
    volume = abs(float(np.linalg.det(cell.lattice))) / 2
    stretch = cell.lattice[0, 2] / cell.lattice[0, 1] - 1
    tensor = volume * np.diag([1 - stretch, 1 - stretch, 1 + 2 * stretch])
    return {
        "volume": volume,
        "tensor": tensor.ravel().tolist(),
        "chalcogenide": int(cell.numbers[1]) in (8, 16, 34),
    }


def write_table(path: Path, cells: list[Cell]) -> Path:
    """A parquet file of cells and labels."""
    arrays = [{key: np.ravel(value).tolist() for key, value in c._asdict().items()} for c in cells]
    rows = [{"id": f"c{i}"} | arrays[i] | label(cell) for i, cell in enumerate(cells)]
    pd.DataFrame(rows).to_parquet(path)
    return path
