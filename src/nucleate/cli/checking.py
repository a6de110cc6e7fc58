"""``nucleate check`` and ``nucleate explain objective``."""

from __future__ import annotations

from typing import Annotated

import typer

from nucleate.cli import console

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in recipe, or a .yaml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the recipe, such as budget.evaluations=10000."),
]

app = typer.Typer(no_args_is_help=True, help="What a part of a recipe means.")


def check(
    recipe: RecipeName,
    settings: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Evaluate the objective on 4 crystals too.")
    ] = False,
) -> None:
    """Check that a recipe can run: model, elements, properties, folder, disk."""
    from nucleate.checking import check

    if console.show_checks(check(recipe, settings or (), trial=dry_run)):
        raise typer.Exit(1)
    console.result(f"{recipe} can run")


@app.command()
def objective(recipe: RecipeName, settings: Overrides = None) -> None:
    """Each property of an objective: unit, shaping and its range, cost, and what it lacks."""
    from nucleate.checking import explain_objective

    parts = explain_objective(recipe, settings or ())
    shown = console.table(("", "property", "wanted", "cost", "ready"))
    for column in (1, 3):
        shown.columns[column].no_wrap = True
    for part in parts:
        name = part.name if part.name == part.property else f"{part.name} ({part.property})"
        wanted = part.wanted
        if part.range is not None:
            wanted += f"\nscore {part.range[0]:g} to {part.range[1]:g}"
        if part.weight is not None:
            wanted += f", weight {part.weight:g}"
        cost = "" if part.cost is None else part.cost.value
        ready = "no" if part.missing else "yes"
        cells = (part.kind, "\n".join(filter(None, (name, part.unit))), wanted, cost, ready)
        shown.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console.out().print(shown)
    for name, missing in {part.name: part.missing for part in parts if part.missing}.items():
        console.result(f"{name} can't run: {missing}")
