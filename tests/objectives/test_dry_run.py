"""What can't work is found on a few crystals; what was computed is kept, what failed is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nucleate.errors import NucleateError
from nucleate.objectives.dry_run import dry_run
from nucleate.objectives.objective import Filter, Objective, Term
from nucleate.objectives.settings import FilterSettings
from nucleate.objectives.shaping import Linear
from nucleate.protocols import CostClass, Scores, Status

UNIT = Linear(type="linear", low=0, high=10)
CRYSTALS = [1.0, 2.0, 3.0, 4.0]


class Sized:
    """The crystals are numbers; the property is the number, with a reason where it is no good."""

    unit, cost = "1", CostClass.MODEL

    def __init__(self, name: str, status: Status = Status.OK, reason: str = "") -> None:
        self.name, self.key = name, name
        self.status, self.reason, self.seen = status, reason, []

    def evaluate(self, structures: Sequence[Any]) -> Scores:
        self.seen += structures
        good = self.status is Status.OK
        value = np.array([s if good else np.nan for s in structures])
        return Scores(
            value, [self.status] * len(structures), [self.reason.format(s) for s in structures]
        )


def test_every_property_is_tried_whatever_the_filters_say_and_nobody_is_charged() -> None:
    prop, filtering = Sized("wanted"), Sized("filtering")
    refusing = Filter(filtering, FilterSettings(property="filtering", min=99))
    objective = Objective([Term(prop, UNIT)], filters=[refusing])
    trials = dry_run(objective, CRYSTALS, list("abcd"))
    assert [(trial.label, trial.ok) for trial in trials] == [
        ("filtering", 4),
        ("wanted", 4),
    ]
    assert "wanted: a value for 4 of 4 crystals, 1 to 4 1" in str(trials[1])
    assert objective.evaluations_spent() == 0
    again = Objective([Term(prop, UNIT)], store=objective.store)
    assert again.score(CRYSTALS, list("abcd")).spent == {"wanted": 4}  # now somebody asks
    assert prop.seen == CRYSTALS  # but nothing is computed again


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT, Status.CRASHED])
def test_one_reason_for_all_is_a_set_up_that_can_not_work(status: Status) -> None:
    prop = Sized("lost", status, "no weights at /nowhere")
    objective = Objective([Term(prop, UNIT)])
    with pytest.raises(NucleateError, match=r"'lost' failed on all 4(.|\n)*no weights at /nowhere"):
        dry_run(objective, CRYSTALS, list("abcd"))
    prop.status, prop.reason = Status.OK, ""  # mended: the failures were not kept
    assert dry_run(objective, CRYSTALS, list("abcd"))[0].ok == 4


@pytest.mark.parametrize(
    ("prop", "crystals"),
    [
        (Sized("soft", Status.FAILED, "a strain has the stiffness -{}"), CRYSTALS),
        (Sized("rare", Status.UNSUPPORTED, "no value"), CRYSTALS),
        (Sized("alone", Status.FAILED, "no value"), CRYSTALS[:1]),
    ],
)
def test_reasons_of_the_crystals_own_are_said_and_the_run_goes_on(
    prop: Sized, crystals: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        [trial] = dry_run(Objective([Term(prop, UNIT)]), crystals, list("abcd")[: len(crystals)])
    assert trial.ok == 0
    assert prop.name in caplog.text


def test_without_crystals_nothing_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert dry_run(Objective([Term(Sized("x"), UNIT)]), [], []) == []
    assert "no valid crystal" in caplog.text
