"""``nucleate tune``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nucleate.cli import console
from nucleate.errors import InputError, NucleateError, UnscoredError


def tune(
    recipe: Annotated[
        str | None, typer.Argument(help="A built-in recipe, such as stability, or a .yaml file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, such as budget.evaluations=10000."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder of the run, below runs/.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with this run instead.")
    ] = None,
) -> None:
    """Fine-tune a model by reinforcement, then judge it against its base."""
    from nucleate.cli.progress import TuningProgress

    if (recipe is None) == (resume is None):
        from nucleate.recipe import built_in_recipes

        raise InputError(
            "Name either a recipe or, with --resume, a run."
            if recipe is None
            else "A run that goes on keeps its own recipe.",
            fix=f"Built-in recipes: {', '.join(built_in_recipes())}."
            if recipe is None
            else "Leave out the recipe, or --resume.",
        )
    if resume is not None and (settings or name):
        raise InputError(
            "--set and --name change nothing of a run that goes on.",
            "It equals the uninterrupted run only with its own recipe.",
            "Leave them out, or start a new run.",
        )
    overrides = list(settings or ()) + ([f"output.name={json.dumps(name)}"] if name else [])
    progress = TuningProgress()
    try:
        with progress:
            if resume is None:
                from nucleate.recipe import load_recipe

                loaded = load_recipe(str(recipe), overrides)
                progress.expect(loaded)
                from nucleate.design import tune

                path = tune(
                    loaded,
                    on_step=progress.step,
                    on_stage=progress.stage,
                    on_run=progress.run_started,
                )
            else:
                from nucleate.design import recipe_of_run
                from nucleate.design import resume as go_on

                progress.expect(recipe_of_run(resume))
                progress.run_started(resume)
                path = go_on(resume, on_step=progress.step, on_stage=progress.stage)
    except (KeyboardInterrupt, NucleateError) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        mendable = resume is None and not isinstance(error, UnscoredError)
        if (stopped or mendable) and progress.path is not None and progress.path.is_dir():
            console.say(f"go on with: nucleate tune --resume {progress.path}")
        raise
    show_run(path)


def show_run(path: Path) -> None:
    """The comparison of a finished run, and where everything is."""
    from nucleate.evaluation.compare import COMPARISON_JSON, basis
    from nucleate.report.data import EVALUATION_FOLDER

    file = path / EVALUATION_FOLDER / COMPARISON_JSON
    if file.is_file():
        compared = json.loads(file.read_text(encoding="utf-8"))
        console.out().print(console.comparison_table(compared, "base", "tuned"))
        for line in basis(compared):
            console.result(line)
    for label, part in (
        ("tuned model", "model"),
        ("crystals", "crystals"),
        ("report", "report.html"),
    ):
        if (path / part).exists():
            console.result(f"{label:<12} {path / part}")
