"""Progress on a terminal as a live panel, elsewhere as plain lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nucleate.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nucleate.policies.pretraining import Pretraining
    from nucleate.recipe import Recipe

BLOCKS = "▁▂▃▄▅▆▇█"
LINE_SECONDS = 10.0
"""Between plain lines of a training, whose steps are short."""
JUDGED = (("stable", "stable_fraction"), ("new", "new_fraction"))
"""What a step says of stability, if the objective asks for it."""


def duration(seconds: float) -> str:
    """``1:05:09`` or ``5:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: list[float], width: int = 48) -> str:
    """The course of some numbers in one line, means of equal stretches."""
    if not values:
        return ""
    size = -(-len(values) // width)
    means = [
        sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)
    ]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in means)


def _known(fraction: float | None) -> bool:
    return fraction is not None and not math.isnan(fraction)


class _Display:
    """A live panel where there is a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self.live: Any = None
        self.stages: list[str] = []

    def __enter__(self) -> Self:
        if console.err().is_terminal:
            from rich.live import Live

            self.live = Live(
                console=console.err(), get_renderable=self.render, refresh_per_second=4
            )
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the panel and leave its last state on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def render(self) -> RenderableType:
        """What the panel shows."""
        raise NotImplementedError


class TuningProgress(_Display):
    """Progress of reinforcement: formulas, space groups, reward, what is spent, what is left.

    Attributes:
        path: folder of the run, once there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: Path | None = None
        self.recipe: Recipe | None = None
        self.rewards: list[float] = []
        self.last: Mapping[str, Any] = {}
        self.started = time.monotonic()
        self.spent = (0.0, 0.0)  # fraction of the budget, and seconds, when this process began
        self.line = "loading"

    def expect(self, recipe: Recipe) -> None:
        """The recipe, whose budget the time left follows from."""
        self.recipe = recipe

    def run_started(self, path: Path) -> None:
        """The run's folder is there."""
        self.path = path
        self._say(f"run: {path}")

    def stage(self, line: str) -> None:
        """A stage of the job has begun."""
        self.line = line
        self._say(line)

    def _say(self, line: str) -> None:
        console.say(f"{duration(time.monotonic() - self.started)}  {line}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A step is done."""
        if not self.last:
            # what earlier processes have done takes no time of this one
            self.spent = (self._fraction(metrics, before=True), time.monotonic() - self.started)
        self.last = metrics
        self.rewards.append(float(metrics["reward_mean"]))
        if self.live is None:
            console.say(self._plain(metrics))

    def _fraction(self, metrics: Mapping[str, Any], *, before: bool = False) -> float:
        """Part of the budget that is spent, by the limit that is nearest; -1 if unknown."""
        if self.recipe is None:
            return -1.0
        budget, done = self.recipe.budget, int(metrics["step"]) + (0 if before else 1)
        parts = [0.0]
        if budget.steps:
            parts.append(done / budget.steps)
        if budget.evaluations:
            spent = float(metrics["evaluations"]) - (budget.batch_size if before else 0)
            parts.append(max(0.0, spent) / budget.evaluations)
        for name, limit in budget.limits.items():
            counts = metrics["spent"]["by_property"] | metrics["spent"]["by_cost"]
            spent = float(counts.get(name, 0)) - (budget.batch_size if before else 0)
            parts.append(max(0.0, spent) / limit)
        if budget.core_hours and not before:
            hours = math.fsum(metrics["spent_seconds"]["by_property"].values()) / 3600
            parts.append(hours / budget.core_hours)
        if budget.minutes and not before:
            seconds = time.monotonic() - self.started - self.spent[1]
            parts.append(seconds / (60 * budget.minutes))
        return min(1.0, max(parts))

    def _left(self, metrics: Mapping[str, Any]) -> str:
        """Time that tuning still takes; judging comes after it."""
        done = self._fraction(metrics)
        gained = done - max(0.0, self.spent[0])
        elapsed = time.monotonic() - self.started - self.spent[1]
        if done < 0 or gained <= 0 or len(self.rewards) < 2:
            return "-:--"
        return duration(elapsed * (1 - done) / gained)

    def _cost(self, metrics: Mapping[str, Any]) -> str:
        """What evaluations have cost so far, by all processes that worked on the run."""
        seconds = metrics.get("spent_seconds", {}).get("by_property", {})
        return f"{sum(seconds.values()) / 3600:.2f} core-hours"

    def _evaluations(self, metrics: Mapping[str, Any]) -> str:
        limit = None if self.recipe is None else self.recipe.budget.evaluations
        return f"{metrics['evaluations']:,}" + (f" of {limit:,}" if limit else "")

    def _plain(self, metrics: Mapping[str, Any]) -> str:
        best = ", ".join(f"{formula} ({group})" for formula, group, _ in metrics["best"][:2])
        kl = metrics.get("kl")
        parts = (
            f"step {metrics['step'] + 1}",
            f"evaluations {self._evaluations(metrics)}",
            f"reward {metrics['reward_mean']:+.3f}",
            *(f"{name} {metrics[key]:.0%}" for name, key in JUDGED if _known(metrics[key])),
            "" if kl is None else f"KL {kl:.2f} nat",
            f"left {self._left(metrics)}",
            self._cost(metrics),
            f"best {best}",
        )
        passed = duration(time.monotonic() - self.started)
        return f"{passed}  " + "  ".join(part for part in parts if part)

    def render(self) -> RenderableType:
        """Numbers, the course of the reward, and the best crystals of the last step."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        passed = duration(time.monotonic() - self.started)
        if not self.last:
            return Panel(Text(f"{self.line}  {passed}"), title="nucleate tune", width=78)
        m = self.last
        head = Text.assemble(
            (f"step {m['step'] + 1}", "bold"),
            f"   evaluations {self._evaluations(m)}   {self._cost(m)}\n",
            (f"{passed} passed, tuning takes {self._left(m)} more", "dim"),
        )
        kl = m.get("kl")
        numbers = Text.assemble(
            "reward ",
            (f"{m['reward_mean']:+.3f}", "bold"),
            f"   valid {m['valid_fraction']:.0%}",
            *(
                part
                for name, key in JUDGED
                if _known(m[key])
                for part in (f"   {name} ", (f"{m[key]:.0%}", "bold green"))
            ),
            "" if kl is None else f"   KL {kl:.2f} nat",
        )
        shown = console.table(("best of this step", "space group", ">reward"))
        for formula, group, reward in m["best"]:
            shown.add_row(str(formula), space_group_name(int(group)), f"{reward:+.3f}")
        return Panel(
            Group(
                head,
                # a bar ends without a new line, which the padding adds
                Padding(ProgressBar(total=1.0, completed=max(0.0, self._fraction(m)), width=74), 0),
                numbers,
                Text(f"reward {sparkline(self.rewards)}", style="cyan"),
                shown,
                Text(self.line, style="dim"),
            ),
            title="nucleate tune",
            width=78,
        )


def space_group_name(number: int) -> str:
    """``Fm-3m (225)``."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return f"{sg_symbol_from_int_number(number)} ({number})"


class TrainingProgress(_Display):
    """Progress of pretraining; silent in all processes but the first.

    Attributes:
        began: whether this is the process that reports.
        validation: the last one, nats a crystal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.began = False
        self.validation: dict[str, float] = {}
        self.losses: list[float] = []
        self.total, self.first, self.best = 1, 0, float("inf")
        self.started = self.spoken = time.monotonic()
        self.last: Mapping[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def start(self, training: Pretraining) -> None:
        """Called before the first step, in the first process only."""
        super().__enter__()
        self.began, self.total, self.first = True, training.total_steps, training.step
        self.best, self.started = training.best, time.monotonic()
        size = sum(p.numel() for p in training.policy.network.parameters())
        console.say(
            f"{len(training.train):,} crystals, {size / 1e6:.1f} million weights, "
            f"{training.total_steps:,} steps"
            + (f", from {training.step:,}" if training.step else "")
        )

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        self.last = metrics
        if math.isfinite(metrics["loss"]):  # or the step is one of those skipped
            self.losses.append(metrics["loss"])
        if "validation" in metrics:
            self.validation = {k: v for k, v in metrics.items() if k.startswith("validation")}
            better = "  (best so far)" if metrics["validation"] < self.best else ""
            self.best = min(self.best, metrics["validation"])
            console.say(
                f"step {metrics['step']:,}  epoch {metrics['epoch']:.2f}  "
                f"validation {metrics['validation']:.3f} nat{better}"
            )
        elif self.live is None and time.monotonic() - self.spoken > LINE_SECONDS:
            console.say(self._line())
            self.spoken = time.monotonic()

    def _line(self) -> str:
        m = self.last
        done = m["step"] - self.first
        left = (time.monotonic() - self.started) / max(1, done) * (self.total - m["step"])
        recent = self.losses[-100:] or [math.nan]
        return (
            f"step {m['step']:,} of {self.total:,}  epoch {m['epoch']:.2f}  "
            f"loss {sum(recent) / len(recent):.3f} nat  {m['crystals_per_second']:.0f} crystals/s  "
            f"left {duration(left)}"
            + (f"  {m['skipped_steps']:,} steps skipped" if m.get("skipped_steps") else "")
        )

    def render(self) -> RenderableType:
        """Step, loss, speed, time left, and the course of the loss."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        if not self.last:
            return Panel(Text("loading"), title="nucleate pretrain", width=96)
        return Panel(
            Group(
                Text(self._line()),
                Padding(ProgressBar(total=self.total, completed=self.last["step"], width=90), 0),
                Text(f"loss {sparkline(self.losses, 80)}", style="cyan"),
            ),
            title="nucleate pretrain",
            width=96,
        )


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that reports how many of how many are done."""
    if not console.err().is_terminal:
        spoken = 0.0

        def plain(done: int, total: int) -> None:
            nonlocal spoken
            if done == total or time.monotonic() - spoken > LINE_SECONDS:
                spoken = time.monotonic()
                console.say(f"{what}: {done:,} of {total:,}")

        yield plain
        return
    from rich.progress import Progress

    with Progress(console=console.err()) as bar:
        task = bar.add_task(what, total=None)

        def moved(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield moved
