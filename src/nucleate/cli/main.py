"""Entry point: the commands, and what becomes of errors."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nucleate import __version__
from nucleate.cli import (
    checking,
    cluster,
    console,
    data,
    hulls,
    judging,
    models,
    predictor,
    runs,
    system,
    tuning,
)
from nucleate.errors import NucleateError, StorageError


class _Commands(TyperGroup):
    """Turns errors into three sentences and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NucleateError as error:
            if ctx.params.get("debug"):
                raise
            console.show_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            stopped = isinstance(error, console.TerminatedError)
            console.say("terminated" if stopped else "interrupted")
            code = console.TERMINATED if stopped else console.INTERRUPTED
            raise typer.Exit(code) from error
        except BrokenPipeError as error:
            # the reader, such as head, has gone: nothing to say, and nothing left to flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            console.show_error(_storage_error(error))
            raise typer.Exit(StorageError.exit_code) from error


def _storage_error(error: OSError) -> StorageError:
    name = error.filename or "a file"
    return StorageError(
        f"{name} can't be used.",
        f"{error.strerror or error}.",
        "Check that it exists, that you may write there, and that the disk has space.",
    )


app = typer.Typer(
    name="nucleate",
    cls=_Commands,
    help="Design crystals by reinforcement learning.",
    epilog="Begin with: nucleate doctor, then nucleate tune stability.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"nucleate {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, and warnings of other libraries.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Design crystals by reinforcement learning."""
    console.quiet_libraries(debug)


app.command("doctor")(system.doctor)
app.command("check")(checking.check)
app.command("tune")(tuning.tune)
app.command("sample")(models.sample)
app.command("score")(judging.score)
app.command("evaluate")(judging.evaluate)
app.command("report")(runs.report)
app.command("verify")(runs.verify)
app.command("recipe")(runs.recipe)
app.command("pretrain")(models.pretrain)
app.add_typer(checking.app, name="explain")
app.add_typer(data.app, name="data")
app.add_typer(hulls.app, name="hull")
app.add_typer(cluster.app, name="cluster")
app.add_typer(predictor.app, name="predictor")
app.add_typer(models.import_app, name="import")


def _terminate(number: int, frame: Any) -> None:
    raise console.TerminatedError


def run() -> None:
    """What the installed command calls; ``--debug`` may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *[argument for argument in arguments if argument != "--debug"]]
    signal.signal(signal.SIGTERM, _terminate)
    app(args=arguments, prog_name="nucleate")
