from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from nucleate.cli import console, progress
from nucleate.recipe import load_recipe

METRICS: dict[str, Any] = {
    "step": 0,
    "evaluations": 64,
    "reward_mean": -0.4,
    "valid_fraction": 1.0,
    "stable_fraction": 0.25,
    "new_fraction": 0.1,
    "kl": 1.5,
    "best": [("NaCl", 225, 0.5), ("Fe", 229, 0.4)],
}


def shown(display: Any) -> str:
    recorder = Console(width=100, record=True, file=None, force_terminal=False)
    with recorder.capture() as captured:
        recorder.print(display.render())
    return captured.get()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (309, "5:09"), (3909, "1:05:09")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_sparkline_rises_with_the_numbers_and_keeps_to_its_width() -> None:
    line = progress.sparkline([float(i) for i in range(1000)], width=20)
    assert len(line) <= 20
    assert list(line) == sorted(line)
    assert progress.sparkline([]) == ""
    assert len(set(progress.sparkline([1.0, 1.0]))) == 1


def test_the_panel_shows_crystals_reward_cost_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    display = progress.TuningProgress()
    display.live = object()
    display.expect(load_recipe("stability", ["budget.steps=4", "budget.minutes=null"]))
    assert "loading" in shown(display)
    for step in range(2):
        clock.now += 10.0
        display.step(METRICS | {"step": step, "evaluations": 64 * (step + 1)})
    text = shown(display)
    for word in (
        "step 2",
        "128 of",
        "-0.400",
        "25%",
        "NaCl",
        "Fm-3m (225)",
        "KL 1.50",
        "core-hours",
    ):
        assert word in text
    # the first of two steps was done when the clock of this process began to count
    assert "takes 0:10 more" in text or "takes 0:20 more" in text


@pytest.mark.parametrize("stable", [0.25, float("nan")])
def test_a_run_without_stability_says_nothing_of_it(
    capsys: pytest.CaptureFixture[str], stable: float
) -> None:
    display = progress.TuningProgress()
    display.step(METRICS | {"stable_fraction": stable, "new_fraction": stable})
    for said in (capsys.readouterr().err, shown(display)):
        assert ("stable 25%" in said) == ("new 25%" in said) == (stable == 0.25)
        assert "nan" not in said


def test_skipped_steps_of_a_training_are_shown() -> None:
    display = progress.TrainingProgress()
    display.live = object()
    done = {"step": 1, "epoch": 0.1, "loss": 30.0, "skipped_steps": 0, "crystals_per_second": 9.0}
    display.step(done)
    assert "skipped" not in shown(display)
    display.step(done | {"step": 2, "loss": float("nan"), "skipped_steps": 1})
    assert "1 steps skipped" in shown(display)
    assert "loss 30.000 nat" in shown(display)


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = progress.TuningProgress()
    with display:
        display.step(METRICS)
    said = capsys.readouterr().err
    assert "step 1 " in said
    assert "NaCl (225)" in said
    assert "\x1b" not in said


def test_a_ratio_without_a_denominator_is_left_out() -> None:
    part = {"value": 0.0, "low": 0.0, "high": 0.1}
    none = {"value": None, "low": None, "high": None}
    row = {"label": "stable", "hull": "h", "base": part, "tuned": part, "ratio": none}
    compared = {"n": 10, "rows": [row], "guards": []}
    recorder = Console(width=100)
    with recorder.capture() as captured:
        recorder.print(console.comparison_table(compared, "base", "tuned"))
    assert "0.0 [0, 10]" in captured.get()
    assert "None" not in captured.get()
