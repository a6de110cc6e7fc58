"""``nucleate report``, ``nucleate verify`` and ``nucleate recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nucleate.cli import console

Run = Annotated[Path, typer.Argument(help="Folder of a run.")]


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="File to write; RUN/report.html.")] = None,
) -> None:
    """Write the report of a run, finished or not."""
    from nucleate.report.page import build_report
    from nucleate.store.rundir import RunDirectory

    RunDirectory.open(run, read_only=True)
    console.result(str(build_report(run, out)))


def verify(run: Run) -> None:
    """Check a run's files against its manifest."""
    from nucleate.store.rundir import RunDirectory

    problems = RunDirectory.open(run, read_only=True).verify()
    for problem in problems:
        console.result(problem)
    if problems:
        raise typer.Exit(5)
    console.result(f"{run}: sound")


def recipe(
    name: Annotated[str | None, typer.Argument(help="A built-in recipe, to print it.")] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="Every key of a recipe: what it is, unit, default.")
    ] = False,
) -> None:
    """List the built-in recipes, or print one to start your own from."""
    if keys:
        from nucleate.recipe import Recipe, describe

        for entry in describe(Recipe):
            console.result(f"{entry.key} = {entry.default}\n    {entry.text}")
        return
    from nucleate.errors import InputError, did_you_mean
    from nucleate.recipe import built_in_recipes, load_recipe

    recipes = built_in_recipes()
    if name is None:
        for known in recipes:
            console.result(f"{known:<22} {load_recipe(known).description}")
        console.say("print one with: nucleate recipe NAME > mine.yaml")
        return
    if name not in recipes:
        raise InputError(f"There is no built-in recipe {name!r}.", fix=did_you_mean(name, recipes))
    typer.echo(recipes[name], nl=False)
