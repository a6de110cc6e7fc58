"""``nucleate doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nucleate.cli import console


def doctor(
    folder: Annotated[Path, typer.Option("--folder", help="Where runs would be written.")] = Path(),
) -> None:
    """Check the installation: versions, optional packages, cores, shipped files, the folder."""
    from nucleate.doctor import examine

    if console.show_checks(examine(folder)):
        raise typer.Exit(1)
    console.result("nucleate is ready")
