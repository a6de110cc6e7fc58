"""What the commands share: two consoles, errors, tables, quiet libraries."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import typer

from nucleate.errors import NucleateError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nucleate.doctor import Check

INTERRUPTED, TERMINATED = 130, 143
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}
TIMES = "\N{MULTIPLICATION SIGN}"


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, as batch systems send it before the time is up."""


@lru_cache(maxsize=1)
def out() -> Console:
    """Results go to standard output."""
    from rich.console import Console

    return Console(highlight=False)


@lru_cache(maxsize=1)
def err() -> Console:
    """Progress, remarks and errors go to standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """A remark."""
    err().print(line, markup=False, soft_wrap=True)


def result(line: str) -> None:
    """A line of the result."""
    out().print(line, markup=False, soft_wrap=True)


def show_error(error: NucleateError) -> None:
    """What happened, why, and how to mend it."""
    from rich.text import Text

    text = Text("error: ", style="bold red")
    text.append(error.what, style="default")
    for label, part in (("why", error.why), ("fix", error.fix)):
        if part:
            text.append(f"\n{label:>5}: ", style="bold")
            text.append(part, style="default")
    err().print(text, soft_wrap=True)


class _ToConsole(logging.Handler):
    """Log records as remarks, without disturbing a live display."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def quiet_libraries(debug: bool) -> None:
    """Show warnings of nucleate itself; those of other libraries only if asked."""
    root, own = logging.getLogger(), logging.getLogger("nucleate")
    for handler in list(own.handlers):
        if isinstance(handler, _ToConsole):
            own.removeHandler(handler)
    own.addHandler(_ToConsole(logging.DEBUG if debug else logging.WARNING))
    own.setLevel(logging.INFO if debug else logging.WARNING)
    if not debug:
        warnings.filterwarnings("ignore")
        if not root.handlers:
            root.addHandler(logging.NullHandler())


def show_checks(checks: Iterable[Check]) -> int:
    """A line for each check as it comes.

    Returns:
        The number of problems, which is said too.
    """
    from rich.markup import escape

    problems = 0
    for check in checks:
        problems += check.level.value == "problem"
        mark = MARKS[check.level.value]
        gap = " " * (8 - len(check.level.value))
        out().print(f"{mark}{gap}{escape(check.name):<28} {escape(check.detail)}", soft_wrap=True)
    if problems:
        say(f"{problems} problem{'s' if problems > 1 else ''}")
    return problems


def names(text: str | None) -> list[str]:
    """``Li,O`` or ``"Li O"`` as a list."""
    return [part for part in re.split(r"[,\s]+", text or "") if part]


def integers(text: str | None, option: str) -> list[int]:
    """``225,221`` or ``1-3`` as numbers.

    Raises:
        typer.BadParameter: something else.
    """
    found: list[int] = []
    for part in names(text):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise typer.BadParameter(f"{part!r} is no number; write {option} 1,2,3 or 1-3")
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return found


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """``a=1`` and ``b.c=x`` as a mapping; values are read as YAML.

    Raises:
        RecipeError: no assignment.
    """
    from nucleate.config import Document

    document = Document("", "--set")
    for pair in pairs:
        document.override(pair)
    return dict(document.data)


def table(columns: Iterable[str], title: str | None = None) -> Table:
    """An empty table in the house style."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numeric = column.startswith(">")
        justify: Literal["left", "right"] = "right" if numeric else "left"
        made.add_column(column.lstrip(">"), justify=justify, overflow="fold")
    return made


def comparison_table(compared: Mapping[str, Any], before: str, after: str) -> Table:
    """Base against tuned: every fraction with its 95 % interval."""
    made = table(
        ("% of all [95 %]", f">{before}", f">{after}", ">ratio [95 %]"),
        title=f"{before} against {after}, {compared['n']:,} samples each",
    )
    heading = ""
    order = list(dict.fromkeys(["", *(row["hull"] for row in compared["rows"])]))
    for row in sorted(compared["rows"], key=lambda row: order.index(row["hull"])):
        if row["hull"] != heading:
            heading = row["hull"]
            made.add_section()
            made.add_row(f"[dim]by the hull {heading}[/]")
        sides = (percent(row[side]) for side in ("base", "tuned"))
        made.add_row(row["label"], *sides, _times(row["ratio"]))
    made.add_section()
    for row in compared["guards"]:
        kept = "" if row["kept"] else f" (floor {row['floor']:.2f})"
        sides = (f"{row[side]:.4g}" for side in ("base", "tuned"))
        made.add_row(row["label"], *sides, f"{TIMES}{row['ratio']:.2f}{kept}")
    for i, row in enumerate(compared.get("objective", {}).get("rows", ())):
        if not i:
            made.add_section()
            made.add_row(f"[dim]by the objective, {compared['objective']['n']:,} samples each[/]")
        unit = f", {row['unit']}" if row["unit"] else ""
        sides = ("" if row[side] is None else f"{row[side]:.4g}" for side in ("base", "tuned"))
        made.add_row(f"{row['label']}{unit}", *sides, "")
    return made


def _times(ratio: Mapping[str, float | None]) -> str:
    """A ratio with its interval; empty where the denominator is zero."""
    value, low, high = (ratio[key] for key in ("value", "low", "high"))
    if value is None or not math.isfinite(value):
        return ""
    if low is None or high is None or not math.isfinite(high):
        return f"{TIMES}{value:.2f}"
    return rf"{TIMES}{value:.2f} \[{low:.2f}, {high:.2f}]"


def percent(part: Mapping[str, float]) -> str:
    """A fraction with its interval."""
    value, low, high = (100 * part[key] for key in ("value", "low", "high"))
    return rf"{value:.1f} \[{low:.0f}, {high:.0f}]"
