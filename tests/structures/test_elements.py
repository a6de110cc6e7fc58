"""Symbols against pymatgen, and the elements that a design leaves out."""

from __future__ import annotations

import pytest
from pymatgen.core import Element

from nucleate.errors import RecipeError
from nucleate.structures.elements import (
    ATOMIC_NUMBERS,
    RADIOACTIVE,
    SYMBOLS,
    allowed_elements,
    atomic_numbers,
)


def test_symbols_are_the_elements_in_order() -> None:
    assert [Element(symbol).Z for symbol in SYMBOLS] == list(range(1, 119))
    assert ATOMIC_NUMBERS["Fe"] == 26


def test_radioactive_elements() -> None:
    assert {ATOMIC_NUMBERS[s] for s in ("Tc", "Pm", "Po", "Th", "U", "Og")} <= RADIOACTIVE
    assert ATOMIC_NUMBERS["Bi"] not in RADIOACTIVE
    assert not RADIOACTIVE & set(allowed_elements())
    assert len(allowed_elements(exclude_radioactive=False)) == 118


def test_allow_and_deny() -> None:
    assert allowed_elements(["O", "Li", "U"], ["Li"]) == [8, 92]
    assert 2 not in allowed_elements(exclude_noble_gases=True)
    with pytest.raises(RecipeError, match="No element"):
        allowed_elements(["O"], ["O"])
    with pytest.raises(RecipeError, match="'Fe'"):
        atomic_numbers(["fe"])
