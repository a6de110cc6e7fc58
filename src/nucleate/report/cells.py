"""What the page needs to draw a crystal: atoms, bonds and edges of the conventional cell."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

NONMETALS = frozenset(
    ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Te", "I")
)
MAX_ATOMS = 400  # cells with more are drawn without copies at the faces and without bonds
BOND_FACTOR = 1.15  # longest bond in sums of covalent radii
_FACE = 0.02  # fractional distance from a face within which an atom is drawn on both sides


def conventional(structure: Structure, symprec: float = 0.01) -> Structure:
    """Standard conventional cell by moyopy at ``symprec`` Å; the cell as given where that fails."""
    import moyopy
    from moyopy.interface import MoyoAdapter

    try:
        cell = moyopy.MoyoDataset(MoyoAdapter.from_py_obj(structure), symprec=symprec).std_cell
        return MoyoAdapter.get_structure(cell)
    except (RuntimeError, ValueError, TypeError):
        return structure


def drawing(structure: Structure) -> dict[str, Any]:
    """A crystal as plain lists, cell centre at the origin, lengths in Å to three decimals.

    Returns:
        ``elements``: symbol, colour (Jmol's) and drawn radius of each element; ``atoms``: x, y, z
        and element index; ``bonds``: pairs of atom indices, drawn where at least one partner is
        no metal; ``edges``: twelve pairs of points.
    """
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.colors import jmol_colors

    cell = conventional(structure)
    matrix = np.asarray(cell.lattice.matrix, dtype=float)
    symbols = [site.specie.symbol for site in cell]
    frac = np.mod(np.round(np.asarray(cell.frac_coords, dtype=float), 6), 1.0)
    small = len(frac) * 8 <= MAX_ATOMS or len(frac) <= 60
    points, kinds = _with_faces(frac, symbols) if small else (frac, symbols)
    names = sorted(set(kinds))
    radii = {name: float(covalent_radii[atomic_numbers[name]]) for name in names}
    centre = np.array([0.5, 0.5, 0.5]) @ matrix
    xyz = points @ matrix - centre
    elements = []
    for name in names:
        red, green, blue = (round(255 * c) for c in jmol_colors[atomic_numbers[name]])
        radius = round(0.25 + 0.3 * radii[name], 3)
        elements.append(
            {
                "symbol": name,
                "colour": f"#{red:02x}{green:02x}{blue:02x}",
                "radius": radius,
            }
        )
    atoms = [
        [*np.round(p, 3).tolist(), names.index(kind)] for p, kind in zip(xyz, kinds, strict=True)
    ]
    bonds = _bonds(xyz, kinds, radii) if len(atoms) <= MAX_ATOMS else []
    return {
        "elements": elements,
        "atoms": atoms,
        "bonds": bonds,
        "edges": _edges(matrix, centre),
    }


def _with_faces(frac: np.ndarray, symbols: list[str]) -> tuple[np.ndarray, list[str]]:
    """Atoms on faces, edges and corners repeated on the opposite side, as cells are drawn."""
    points, kinds = [], []
    for position, symbol in zip(frac, symbols, strict=True):
        choices: list[tuple[float, ...]] = []
        for value in position:
            if value < _FACE:
                choices.append((0.0, 1.0))
            elif value > 1 - _FACE:
                choices.append((0.0, -1.0))
            else:
                choices.append((0.0,))
        for shift in itertools.product(*choices):
            points.append(position + np.array(shift))
            kinds.append(symbol)
    return np.array(points).reshape(-1, 3), kinds


def _bonds(xyz: np.ndarray, kinds: list[str], radii: dict[str, float]) -> list[list[int]]:
    """Pairs nearer than the sum of their covalent radii times BOND_FACTOR."""
    reach = np.array([radii[kind] for kind in kinds])
    covalent = np.array([kind in NONMETALS for kind in kinds])
    distance = np.linalg.norm(xyz[:, None, :] - xyz[None, :, :], axis=-1)
    near = distance < BOND_FACTOR * (reach[:, None] + reach[None, :])
    near &= covalent[:, None] | covalent[None, :]
    first, second = np.nonzero(np.triu(near, k=1))
    return [[int(i), int(j)] for i, j in zip(first, second, strict=True)]


def _edges(matrix: np.ndarray, centre: np.ndarray) -> list[list[list[float]]]:
    corners = [np.array(c, dtype=float) for c in itertools.product((0, 1), repeat=3)]
    return [
        [
            np.round(a @ matrix - centre, 3).tolist(),
            np.round(b @ matrix - centre, 3).tolist(),
        ]
        for a, b in itertools.combinations(corners, 2)
        if np.abs(a - b).sum() == 1
    ]
