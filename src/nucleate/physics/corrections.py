"""Energy corrections that bring raw PBE(+U) energies to the Materials Project's scale of 2020.

The scheme is that of Wang et al., Sci. Rep. 11, 15496 (2021): a shift for each anion, and one for
each transition metal that is treated with a Hubbard U in oxides and fluorides. The numbers and
rules are those of pymatgen's ``MaterialsProject2020Compatibility``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import NucleateError

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    from nucleate.physics.cells import Cell


def mp2020_corrections(
    structures: Sequence[Structure | Cell],
) -> tuple[np.ndarray, list[str]]:
    """Corrections to add to raw energies.

    Args:
        structures: B crystals.

    Returns:
        (B,) eV/atom, NaN where the scheme has no answer, and B reasons, empty where fine.
    """
    values = np.full(len(structures), np.nan)
    reasons = [""] * len(structures)
    for i, structure in enumerate(structures):
        try:
            values[i] = _correction(structure)
        except (NucleateError, ValueError, KeyError) as error:
            reasons[i] = f"no MP2020 correction: {error}"
    return values, reasons


def hubbard_u(symbols: Sequence[str]) -> dict[str, float]:
    """U values (eV) that the Materials Project uses for a compound of these elements.

    A metal gets its U only where the most electronegative element is oxygen or fluorine.
    """
    from pymatgen.core import Element

    anion = max(symbols, key=lambda s: Element(s).X if Element(s).X == Element(s).X else -1.0)
    table = _u_table().get(anion)
    return {s: table[s] for s in symbols if s in table} if table else {}


@lru_cache(maxsize=1)
def _u_table() -> dict[str, dict[str, float]]:
    from pymatgen.io.vasp.sets import MPRelaxSet

    table = MPRelaxSet.CONFIG["INCAR"]["LDAUU"]
    return {anion: dict(u) for anion, u in table.items() if isinstance(u, dict)}


@lru_cache(maxsize=1)
def _compatibility() -> MaterialsProject2020Compatibility:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)


def _correction(structure: Structure | Cell) -> float:
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as PymatgenStructure
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    from nucleate.physics.cells import as_cell

    cell = as_cell(structure)
    plain = PymatgenStructure(Lattice(cell.lattice), cell.numbers.tolist(), cell.frac_coords)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        hubbards = hubbard_u([element.symbol for element in plain.composition])
        entry = ComputedStructureEntry(
            plain,
            0.0,
            parameters={"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards},
        )
        processed = _compatibility().process_entries([entry], on_error="ignore")
    if not processed:
        raise ValueError(f"pymatgen rejects {plain.composition.reduced_formula}")
    return float(processed[0].correction) / len(plain)
