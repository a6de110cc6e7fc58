"""``nucleate predictor``: properties learnt from tables."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nucleate.cli import console
from nucleate.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nucleate.predictors.predictor import Predictor
    from nucleate.predictors.training import Epoch

app = typer.Typer(help="Predictors of properties, learnt from tables.", no_args_is_help=True)

Labels = Annotated[
    list[str] | None,
    typer.Option("--target", help="Column of labels; of several the first that a row has counts."),
]


class Kind(StrEnum):
    """What is predicted."""

    scalar = "scalar"
    tensor = "tensor"
    probability = "probability"


class Split(StrEnum):
    """How a table is divided."""

    formula = "formula"
    random = "random"


@app.command("train")
def train(
    table: Annotated[str, typer.Argument(help="Labelled crystals: file or quoted glob.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    target: Labels = None,
    kind: Annotated[
        Kind, typer.Option(help="A number, a symmetric tensor, or how likely a flag is.")
    ] = Kind.scalar,
    name: Annotated[
        str | None, typer.Option(help="Of the quantity; that of the first column by default.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Of the quantity.")] = "",
    low: Annotated[float | None, typer.Option(help="Leave out labels below.")] = None,
    high: Annotated[float | None, typer.Option(help="Leave out labels above.")] = None,
    minimum: Annotated[float | None, typer.Option(help="Raise predictions to this.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Learn the logarithm.")] = False,
    validation: Annotated[
        str | None, typer.Option(help="Table that decides when to stop; a tenth of TABLE.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Table that is measured at the end; a tenth of TABLE.")
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Keep the crystals of a formula together, or not.")
    ] = Split.formula,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as heads=3.")
    ] = None,
    source: Annotated[str, typer.Option(help="Of the data, for the card.")] = "",
    licence: Annotated[str, typer.Option(help="Of the data, for the card.")] = "",
    attribution: Annotated[str, typer.Option(help="Whom to credit for the data.")] = "",
) -> None:
    """Train a predictor on a table of crystals with labels, and measure it."""
    from nucleate.cli.progress import counting
    from nucleate.config import load_settings
    from nucleate.predictors.tables import Target
    from nucleate.predictors.training import PredictorSettings, train_predictor

    if not target:
        raise InputError("No column of labels is named.", fix="Name it, such as --target band_gap.")
    described = Target(
        name=name or target[0],
        unit=unit,
        kind=kind.value,
        columns=tuple(target),
        low=low,
        high=high,
        minimum=minimum,
        scale="log" if log else "linear",
    )
    loaded = load_settings(PredictorSettings, "", "predictor settings", settings or ())
    about = {"source": source, "licence": licence, "attribution": attribution}
    with counting("features") as moved:
        predictor = train_predictor(
            table,
            out,
            described,
            validation=validation,
            test=test,
            split_by=split.value,
            settings=loaded,
            about={key: text for key, text in about.items() if text},
            on_features=moved,
            on_epoch=_show_epoch,
        )
    console.result(f"predictor: {out}")
    _show(predictor)
    console.result(f"use it with: nucleate score FILES --property predicted --set predictor={out}")


@app.command("evaluate")
def evaluate(
    predictor: Annotated[str, typer.Argument(help="Folder, or the name of one that ships.")],
    table: Annotated[str, typer.Argument(help="Labelled crystals: file or quoted glob.")],
    target: Labels = None,
    out: Annotated[Path | None, typer.Option(help="Table to write, .csv or .jsonl.")] = None,
) -> None:
    """Measure a predictor on labelled crystals."""
    if out is not None and out.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(
            f"{out}: no table format has this extension.", fix="End the name in .csv or .jsonl."
        )
    from nucleate.predictors.checkpoint import load_predictor
    from nucleate.predictors.evaluation import evaluate_predictor
    from nucleate.structures.writing import write_table

    loaded = load_predictor(predictor)
    with console.err().status("predicting"):
        measured, rows = evaluate_predictor(loaded, table, target or ())
    _show_metrics({"": measured}, f"{loaded.target.name} of {table}", loaded.target.unit)
    if out is not None:
        write_table(rows, out)
        console.result(f"{len(rows)} rows in {out}")


@app.command("info")
def info(
    predictor: Annotated[
        str | None, typer.Argument(help="Folder or name; without it, those that ship.")
    ] = None,
) -> None:
    """Show where a predictor comes from and how good it is."""
    from nucleate.predictors.checkpoint import SHIPPED, load_predictor

    for name in [predictor] if predictor is not None else SHIPPED:
        loaded = load_predictor(name)
        console.result(f"{name}: {loaded.target.name}, {loaded.target.kind}")
        _show(loaded)


def _show_epoch(epoch: Epoch) -> None:
    if epoch.best:
        console.say(
            f"head {epoch.head}  epoch {epoch.epoch}  loss {epoch.loss:.4f}  "
            f"validation {epoch.validation:.4f}  (best so far)"
        )


def _show(predictor: Predictor) -> None:
    card = predictor.card
    rows = {
        "crystals": ", ".join(f"{count:,} {name}" for name, count in card["crystals"].items()),
        "elements": str(len(predictor.elements)),
        "source": card.get("source"),
        "licence": card.get("licence"),
        "attribution": card.get("attribution"),
        "sha256": predictor.weights_sha256,
    }
    for label, text in rows.items():
        if text:
            console.result(f"  {label:<12} {text}")
    _show_metrics(card["metrics"], predictor.target.name, predictor.target.unit)


def _show_metrics(metrics: Mapping[str, Mapping[str, Any]], title: str, unit: str) -> None:
    in_unit = ("mae", "median_absolute_error", "rmse", "dummy_mae", "frobenius")
    shown = console.table(("", *(f">{part}" for part in metrics)), title=title)
    for name in dict.fromkeys(name for part in metrics.values() for name in part):
        label = name.replace("_", " ") + (f" / {unit}" if unit and name in in_unit else "")
        cells = (part.get(name) for part in metrics.values())
        shown.add_row(
            label,
            *("" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for v in cells),
        )
    console.out().print(shown)
