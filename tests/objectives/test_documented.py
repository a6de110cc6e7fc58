"""The terms that docs/objectives.md gives are terms, and mean what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from nucleate.config import load_settings
from nucleate.objectives.settings import TermSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"


def terms() -> dict[str, TermSettings]:
    """Of the tables, by what stands before them."""
    rows = re.findall(r"^\| (.+?) \| `(\{property: .+\})` \|$", PAGE.read_text("utf-8"), re.M)
    return {goal: load_settings(TermSettings, text, goal) for goal, text in rows}


@pytest.mark.parametrize(
    ("goal", "worst", "half", "best"),
    [
        ("band gap of 3 eV", 5.0, 2.0, 3.0),
        ("bulk modulus of 300 GPa", 50, 175, 300),
        ("shear modulus of 200 GPa", 40, 120, 200),
        ("stiff (Young modulus)", 80, 280, 480),
        ("ductile (Pugh ratio)", 1.5, 5.75, 10),
        ("density of 18 g/cm³", 8, 13, 18),
        ("large dielectric constant", 35, 77.5, 120),
        ("gap times dielectric constant", 10, 130, 250),
        ("low formation energy", -1, -2.25, -3.5),
        ("large heat capacity at 300 K", 0.25, 1.125, 2),
        ("safe supply", 3250, 2000, 750),
        ("abundant elements", 2, 3.5, 5),
        ("strong magnet", 0, 0.125, 0.25),
        ("cheap", 500, 275, 50),
        ("likely to be made", 0.5, 0.75, 1),
    ],
)
def test_matinvents_goals(goal: str, worst: float, half: float, best: float) -> None:
    shaping = terms()[goal].shaping
    np.testing.assert_allclose(shaping(np.array([worst, half, best])), [0, 0.5, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("goal", "value", "score"),
    [
        ("max(-d / t, -5)", 150.0, -0.25),
        ("max(-d / t, -5)", 5000.0, -5.0),
        ("exp(-d² / t)", 4.5, np.exp(-0.75)),
        ("exp(-d²)", 0.0, np.exp(-(1.12**2))),
    ],
)
def test_crystalgyms_rewards(goal: str, value: float, score: float) -> None:
    assert terms()[goal].shaping(np.array([value]))[0] == pytest.approx(score, rel=1e-12)


def test_inline_terms_are_terms() -> None:
    inline = re.findall(r"`(\{property: [^`]+\})`", PAGE.read_text("utf-8"))
    assert len(inline) == len(terms()) + 2
    for text in inline:
        load_settings(TermSettings, text, PAGE.name)
