"""``nucleate cluster``: evaluations in batch jobs."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Evaluations in batch jobs.", no_args_is_help=True)


@app.command("script")
def script(
    recipe: Annotated[str, typer.Argument(help="A recipe with a section 'cluster'.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, such as cluster.partition=long."),
    ] = None,
) -> None:
    """Print the script of one batch job as tune would submit it; nothing is submitted."""
    from pathlib import Path

    from nucleate.errors import RecipeError
    from nucleate.recipe import load_recipe

    loaded = load_recipe(recipe, settings or ())
    if loaded.cluster is None:
        raise RecipeError(
            f"{recipe} has no section 'cluster'.",
            "Without one, evaluations run on this machine and no job is submitted.",
            "Add one, or give --set cluster.scheduler=slurm --set cluster.workers=64.",
        )
    from nucleate.execution.cluster import batch_script

    output = loaded.output
    folder = Path(output.directory) / (output.name or loaded.name) / "cluster"
    typer.echo(batch_script(loaded.cluster, folder))


@app.callback()
def _group() -> None:
    """Keep ``script`` a command of its own name."""
