"""A small set of crystals judged by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.evaluation.summary import Evaluation, EvaluationSettings
from nucleate.evaluation.sun import evaluate_crystals
from nucleate.protocols import Scores, Status
from nucleate.structures.identity import ReferenceSet


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    """Rock salt, primitive cell; ``a`` the cubic parameter in Å."""
    half = a / 2
    lattice = Lattice([[0, half, half], [half, 0, half], [half, half, 0]])
    return Structure(lattice, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    """CsCl type; ``a`` in Å."""
    return Structure(Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def scores(values: Sequence[float]) -> Scores:
    """Scores of ``values`` (eV/atom); NaN becomes a failure."""
    array = np.array(values, dtype=float)
    failed = np.isnan(array)
    return Scores(
        array,
        [Status.UNSUPPORTED if bad else Status.OK for bad in failed],
        ["the hull lacks Pm" if bad else "" for bad in failed],
        {"energy_per_atom": array - 3.0},
    )


@pytest.fixture
def crystals() -> list[Structure | None]:
    """Row by row: known; novel unstable; its stable twin; a duplicate; unscored; invalid; failed."""
    squeezed = caesium_chloride("K", "Br", 0.3)
    return [
        rock_salt("Na", "Cl", 5.64),
        rock_salt("Mg", "O", 4.6),
        rock_salt("Mg", "O", 4.21),
        rock_salt("Mg", "O", 4.22),
        rock_salt("Pm", "N", 5.2),
        squeezed,
        None,
        caesium_chloride("Na", "Cl", 3.4),
    ]


@pytest.fixture
def judged(crystals: list[Structure | None]) -> Evaluation:
    """The set above, with NaCl (rock salt) as the only known crystal."""
    reasons = ["", "", "", "", "", "", "no site was drawn", ""]
    main = scores([0.0, 0.4, 0.05, 0.05, np.nan, np.nan, np.nan, 0.1])
    other = scores([-0.01, 0.4, 0.2, 0.02, 0.03, np.nan, np.nan, 0.05])
    return evaluate_crystals(
        crystals,
        reasons,
        hulls={"chgnet": main, "mp2020": other},
        reference=ReferenceSet.from_structures([rock_salt("Na", "Cl", 5.69)], ["mp-22862"]),
        charge_balanced=[True] * 8,
        settings=EvaluationSettings(potential="chgnet"),
        name="base",
    )
