"""``nucleate evaluate`` says what it judged and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands_under_test import Outcome

from made_up import MadeUpPotential
from nucleate import judging

Run = Callable[..., Outcome]


@pytest.fixture
def potential(monkeypatch: pytest.MonkeyPatch) -> MadeUpPotential:
    made = MadeUpPotential()
    monkeypatch.setattr(judging, "potential_pool", made.in_a_pool)
    return made


@pytest.mark.parametrize("against", [(), ("--against", "base")])
def test_what_was_replaced_on_the_command_line_is_what_is_printed(
    nucleate: Run, model: Path, potential: MadeUpPotential, against: tuple[str, ...]
) -> None:
    against = ("--against", str(model)) if against else ()
    options = ("--coordinate-temperature", 0.42, "--max-atoms", 9, "--space-groups", 221)
    outcome = nucleate("evaluate", model, "-n", 6, *options, *against)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "Drawn with space groups 221; max atoms 9" in said
    assert "coordinate temperature 0.42" in said
    assert "crystals unrelaxed;" in said
    assert "as in the recipe" not in said


def test_relaxed_is_said_to_be_relaxed(
    nucleate: Run, model: Path, potential: MadeUpPotential
) -> None:
    outcome = nucleate("evaluate", model, "-n", 4, "--space-groups", 221, "--relax")
    assert outcome.code == 0, outcome.err
    assert "crystals relaxed;" in " ".join(outcome.out.split())


def test_a_seed_given_twice_is_refused(nucleate: Run, model: Path) -> None:
    outcome = nucleate("evaluate", model, "-n", 4, "--seeds", "1,1")
    assert outcome.code == 3
    assert "different seeds" in outcome.err
