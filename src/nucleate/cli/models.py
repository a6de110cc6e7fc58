"""``nucleate sample``, ``nucleate pretrain`` and ``nucleate import``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nucleate.cli import console
from nucleate.cli.options import (
    CoordinateTemperature,
    Elements,
    Exclude,
    MaxAtoms,
    SpaceGroups,
    Temperature,
    TopP,
    condition,
)

import_app = typer.Typer(help="Convert models of other programs.", no_args_is_help=True)


class Network(StrEnum):
    """Which network is trained."""

    site = "site"
    published = "published"


def sample(
    model: Annotated[str, typer.Argument(help="'base', or the folder of a model or run.")],
    n: Annotated[int, typer.Option("-n", "--number", help="How many crystals.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal crystals.", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for CIF files, or a name in .extxyz, .csv or .jsonl."),
    ] = None,
    space_groups: SpaceGroups = None,
    elements: Elements = None,
    exclude: Exclude = None,
    max_atoms: MaxAtoms = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    coordinate_temperature: CoordinateTemperature = None,
) -> None:
    """Draw crystals from a model."""
    settings = condition(
        space_groups, elements, exclude, temperature, top_p, coordinate_temperature, max_atoms
    )
    from nucleate.samples import check_output, rows_of, write_samples

    if out is not None:
        check_output(out)
    from nucleate.models import model_folder
    from nucleate.policies.checkpoint import load_policy
    from nucleate.samples import condition_from_recipe
    from nucleate.samples import sample as draw

    policy = load_policy(model_folder(model))
    held = condition_from_recipe(settings, policy)
    with console.err().status(f"sampling {n} crystals"):
        samples = draw(policy, n, held, seed=seed)
    rows = rows_of(samples)
    if out is None:
        _show(rows)
    else:
        files = write_samples(samples, out)
        what = f"{len(files)} CIF files in {out}" if len(files) != 1 else str(files[0])
        console.result(f"{n} crystals drawn, {what}")
    failed = [row for row in rows if row["reason"]]
    if failed:
        first = f"the first is number {failed[0]['number']}: {failed[0]['reason']}"
        console.say(f"{len(failed)} could not be decoded; {first}")


def _show(rows: list[dict[str, Any]], most: int = 50) -> None:
    shown = console.table((">#", "formula", ">space group", ">sites", ">atoms", ">ln p / nat"))
    for row in rows[:most]:
        log_prob = row["log_prob_nats"]
        shown.add_row(
            str(row["number"]),
            row["formula"],
            str(row["space_group"]),
            str(row["n_sites"]),
            str(row["n_atoms"]),
            "" if log_prob is None else f"{log_prob:.1f}",
        )
    console.out().print(shown)
    if len(rows) > most:
        console.say(f"{len(rows) - most} more; write all with --out")


def pretrain(
    train: Annotated[Path, typer.Argument(help="Prepared crystals to learn from.")],
    validation: Annotated[Path, typer.Argument(help="Prepared crystals of other formulas.")],
    out: Annotated[Path, typer.Argument(help="Folder of the training.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as epochs=2.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    network: Annotated[Network, typer.Option(help="Which network.")] = Network.site,
    init: Annotated[str | None, typer.Option(help="Model to start from.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Train a model on known crystals; also under torchrun, on several GPUs or processes."""
    from nucleate.cli.progress import TrainingProgress
    from nucleate.training import load_pretraining_settings, pretrain

    loaded = load_pretraining_settings(config, settings or ())
    with TrainingProgress() as progress:
        try:
            best = pretrain(
                train,
                validation,
                out,
                settings=loaded,
                network=network.value,
                init=init,
                resume=resume,
                device=device,
                on_start=progress.start,
                on_step=progress.step,
            )
        except KeyboardInterrupt:
            progress.stop()
            console.say(f"stopped; go on with the same command and --resume (folder {out})")
            raise
    if progress.began:
        console.result(f"best model: {best}")
        _show_validation(progress.validation)


def _show_validation(validation: Mapping[str, float]) -> None:
    if not validation:
        return
    parts = ", ".join(
        f"{key.removeprefix('validation_')} {value:.3f}"
        for key, value in validation.items()
        if key != "validation"
    )
    total = validation["validation"]
    console.result(f"last validation: {total:.3f} nats a crystal ({parts})")


@import_app.command("crystalformer")
def crystalformer(
    checkpoint: Annotated[Path, typer.Argument(help="epoch_*.pkl of CrystalFormer.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Hyper-parameter that the arrays don't show, key_size=64."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared crystals that it was trained on; tuning needs them."),
    ] = None,
) -> None:
    """Convert a published CrystalFormer checkpoint; no code in the file is ever run."""
    from nucleate.policies.importers import import_crystalformer

    sizes = console.assignments(settings or ())
    network = import_crystalformer(checkpoint, out, data, **sizes)
    size = sum(parameter.numel() for parameter in network.parameters())
    console.result(f"{size:,} weights in {out}")
    if data is not None:
        console.result(f"tune it with: nucleate tune stability --set model.checkpoint={out}")
        return
    console.result(f"sample from it with: nucleate sample {out} --space-groups 225")
    console.say(
        "it can't be tuned: a checkpoint doesn't say which formulas and space groups it learnt "
        "from; for that import it with --data, a folder of nucleate data prepare"
    )
