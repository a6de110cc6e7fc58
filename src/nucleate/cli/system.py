"""``nucleate doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nucleate.cli import console

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


def doctor(
    folder: Annotated[Path, typer.Option("--folder", help="Where runs would be written.")] = Path(),
) -> None:
    """Check the installation: versions, optional packages, cores, shipped files, the folder."""
    from rich.markup import escape

    from nucleate.doctor import Level, examine

    problems = 0
    for check in examine(folder):
        problems += check.level is Level.PROBLEM
        mark = MARKS[check.level.value]
        gap = " " * (8 - len(check.level.value))
        console.out().print(
            f"{mark}{gap}{escape(check.name):<28} {escape(check.detail)}", soft_wrap=True
        )
    if problems:
        console.say(f"{problems} problem{'s' if problems > 1 else ''}")
        raise typer.Exit(1)
    console.result("nucleate is ready")
