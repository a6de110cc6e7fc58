"""What the periodic table says of each element, as numbers a network can read."""

from __future__ import annotations

import warnings

import numpy as np


def element_features() -> np.ndarray:
    """Position in the periodic table, sizes and electronegativity of the elements 0..118.

    Returns:
        (119, 35) float32; row 0 (no element) is zero. Columns: one-hot group 1..18 (lanthanides
        and actinides in group 3), one-hot period 1..7, one-hot block s p d f, then scaled
        electronegativity (Pauling), covalent radius (Cordero 2008), metallic or atomic radius,
        f-shell filling, d-shell filling and atomic number; unknown values take the mean.
    """
    from ase.data import covalent_radii
    from pymatgen.core import Element

    features = np.zeros((119, 35), dtype=np.float32)
    numeric = np.full((119, 6), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(1, 119):
            element = Element.from_Z(number)
            features[number, element.group - 1] = 1
            features[number, 17 + element.row] = 1
            features[number, 25 + "spdf".index(element.block)] = 1
            numeric[number] = [
                element.X,
                covalent_radii[number] if number < len(covalent_radii) else np.nan,
                float(element.atomic_radius) if element.atomic_radius else np.nan,
                _filling(number, 57, 14) if number < 72 else _filling(number, 89, 14),
                element.group / 18 if element.block == "d" else 0.0,
                number / 100,
            ]
    mean, std = np.nanmean(numeric[1:], axis=0), np.nanstd(numeric[1:], axis=0)
    scaled = (numeric - mean) / std
    features[1:, 29:] = np.nan_to_num(scaled[1:], nan=0.0)
    return features


def _filling(number: int, first: int, length: int) -> float:
    """Fraction of an f shell filled, 0 outside it."""
    return (number - first + 1) / length if first <= number < first + length else 0.0


def covalent_radii_angstrom() -> np.ndarray:
    """(119,) covalent radii in Å (Cordero et al. 2008); 1.5 where none is tabulated."""
    from ase.data import covalent_radii

    radii = np.full(119, 1.5)
    known = np.asarray(covalent_radii)[:119]
    radii[: len(known)] = np.where(np.isfinite(known) & (known > 0.25), known, 1.5)
    return radii
