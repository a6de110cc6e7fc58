"""Write ``src/nucleate/data/wyckoff.npz``, the table of Wyckoff positions of the 230 space groups.

Run by hand when the table has to change; needs the development extra ``pyxtal`` (MIT), whose list
of positions follows the International Tables, Vol. A: unique axis b, hexagonal axes for the
rhombohedral groups, origin choice 2. Positions are stored from ``a`` on, translations in 24ths.

Usage: ``python scripts/generate_wyckoff_tables.py [output.npz]``
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
from pyxtal.symmetry import Group

N_GROUPS = 230
N_LETTERS = 28  # 0 = no site, 1..26 = a..z, 27 = A (group 47 only)
TRANSLATION_UNIT = 24
DEFAULT_OUTPUT = Path(__file__).parents[1] / "src" / "nucleate" / "data" / "wyckoff.npz"

# Rows: primitive vectors in units of the conventional ones.
PRIMITIVE_BASES = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]]),
    "C": np.array([[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}


def integer(values: np.ndarray, unit: int = 1) -> np.ndarray:
    """``values * unit`` as int8, refusing anything that is not an integer."""
    scaled = np.asarray(values, dtype=float) * unit
    rounded = np.round(scaled)
    if np.abs(scaled - rounded).max(initial=0) > 1e-3:  # pyxtal rounds 1/3 to 6 decimals
        raise ValueError(f"not a multiple of 1/{unit}: {values}")
    return rounded.astype(np.int8)


def centring_type(general_rotations: np.ndarray, general_translations: np.ndarray) -> str:
    """Letter of the lattice, found from the pure translations among the general positions."""
    pure = (general_rotations == np.eye(3, dtype=int)).all((1, 2))
    vectors = (general_translations[pure] % TRANSLATION_UNIT) / TRANSLATION_UNIT
    for symbol, basis in PRIMITIVE_BASES.items():
        coefficients = vectors @ np.linalg.inv(basis)
        fits = np.abs(coefficients - np.round(coefficients)).max() < 1e-6
        if fits and len(vectors) == round(1 / np.linalg.det(basis)):
            return symbol
    raise ValueError(f"no lattice type has the translations {vectors}")


def check_order(rotations: np.ndarray, translations: np.ndarray, vectors: np.ndarray) -> None:
    """Require that the first m/c operations times the c centring vectors give all m of them."""

    def keys(r: np.ndarray, t: np.ndarray) -> set[bytes]:
        return {
            np.r_[a.ravel(), b % TRANSLATION_UNIT].astype(np.int8).tobytes()
            for a, b in zip(r, t, strict=True)
        }

    first = len(rotations) // len(vectors)
    images: set[bytes] = set()
    for vector in vectors:
        images |= keys(rotations[:first], translations[:first].astype(int) + vector)
    if images != keys(rotations, translations):
        raise ValueError("operations are not listed centring vector by centring vector")


def main(output: Path) -> None:
    """Collect the positions of all groups and write them."""
    multiplicity = np.zeros((N_GROUPS, N_LETTERS), np.int16)
    first = np.zeros((N_GROUPS, N_LETTERS), np.int32)
    rotations, translations, lattices = [], [], []
    total = 0
    for group in range(1, N_GROUPS + 1):
        positions = list(Group(group).Wyckoff_positions)[::-1]
        tables = [
            (
                integer(np.array([op.rotation_matrix for op in position.ops])),
                integer(np.array([op.translation_vector for op in position.ops]), TRANSLATION_UNIT),
            )
            for position in positions
        ]
        lattice = centring_type(*tables[-1])
        pure = (tables[-1][0] == np.eye(3, dtype=int)).all((1, 2))
        for letter, (rotation, translation) in enumerate(tables, start=1):
            check_order(rotation, translation, tables[-1][1][pure].astype(int))
            multiplicity[group - 1, letter] = len(rotation)
            first[group - 1, letter] = total
            total += len(rotation)
            rotations.append(rotation)
            translations.append(translation)
        lattices.append(lattice)
    np.savez_compressed(
        output,
        multiplicity=multiplicity,
        first=first,
        rotation=np.concatenate(rotations),
        translation=np.concatenate(translations),
        lattice_type=np.array(lattices, dtype="S1"),
    )
    logging.info("%d operations, %d bytes: %s", total, output.stat().st_size, output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUTPUT)
