"""``nucleate data``: crystals into tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nucleate.cli import console
from nucleate.errors import RecipeError

app = typer.Typer(help="Prepare crystals for training.", no_args_is_help=True)


@app.command("sources")
def sources() -> None:
    """List the public data sets that are known by name."""
    from nucleate.assets import ASSETS, cache_folder

    for asset in ASSETS.values():
        console.result(f"{asset.name}\n  {asset.title}")
        console.result(f"  splits: {', '.join(asset.splits)}; licence: {asset.licence}")
        console.result(f"  {asset.homepage}\n  cite: {asset.citation}")
    console.result(f"\nprepare one with: nucleate data prepare {next(iter(ASSETS))} mp20-train")
    console.result(f"downloads are kept in {cache_folder()} (NUCLEATE_CACHE)")


@app.command("prepare")
def prepare(
    source: Annotated[
        str, typer.Argument(help="File, folder, quoted glob, or the name of a public data set.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    split: Annotated[
        str | None, typer.Option(help="Split of a public data set; 'train' by default.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Folder or base URL with copies of the public data sets.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    symprec: Annotated[
        float, typer.Option(help="Tolerance of the symmetry search, Å.", min=1e-6, max=1.0)
    ] = 0.01,
    max_sites: Annotated[int, typer.Option(help="Most symmetry-distinct sites.", min=1)] = 20,
    max_atoms: Annotated[int | None, typer.Option(help="Most atoms in a cell.", min=1)] = None,
    max_volume: Annotated[
        float | None, typer.Option(help="Å³ per atom; emptier cells are left out.", min=0.0)
    ] = None,
    max_e_hull: Annotated[
        float | None, typer.Option(help="eV/atom above the hull, by the label.")
    ] = None,
    min_distance: Annotated[float, typer.Option(help="Shortest contact, Å.", min=0.0)] = 0.5,
    exclude: Annotated[str | None, typer.Option(help="Elements left out, such as Tc,Pm.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Table with ids that fills in labels, .csv, .jsonl or .parquet."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label's column in the table, such as e_hull=e_above_hull_mp2020."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Turn crystals into a folder of tokens that training reads."""
    from nucleate.assets import ASSETS, dataset_path
    from nucleate.structures.elements import atomic_numbers
    from nucleate.structures.labels import LabelTable
    from nucleate.structures.preparation import Filters, prepare

    filters = Filters(
        max_sites=max_sites,
        max_atoms=max_atoms,
        max_vol_per_atom=max_volume,
        max_e_hull=max_e_hull,
        min_distance=min_distance,
        exclude_elements=tuple(atomic_numbers(console.names(exclude))),
    )
    table = None
    if labels is not None:
        table = LabelTable.read(labels, _columns(label) if label else None)
    elif label:
        raise RecipeError(
            "--label names a column of a table of labels, and none is given.",
            fix="Give the table with --labels.",
        )
    where: str | Path = source
    if source in ASSETS and not Path(source).exists():
        split = split or "train"
        with console.err().status(f"fetching {source} ({split})"):
            where = dataset_path(source, split, mirror=mirror, offline=offline or None)
    elif split is not None:
        raise RecipeError(
            f"--split is for public data sets; {source} is none.",
            "A split of your own is a file, a folder or a quoted glob.",
            "Name that as the source, or one of: nucleate data sources",
        )
    with console.err().status(f"preparing {where}"):
        report = prepare(
            where,
            out,
            symprec=symprec,
            filters=filters,
            labels=table,
            processes=workers,
            overwrite=overwrite,
        )
    console.result(f"{report.n_kept:,} of {report.n_read:,} crystals prepared in {report.path}")
    for kind, count in sorted(report.skipped.items(), key=lambda entry: -entry[1]):
        console.result(f"  left out: {count:,} {kind}")
    for name, reason in report.examples[:5]:
        console.say(f"  {name}: {reason}")
    for name, counts in report.label_counts.items():
        if table is not None or counts["unknown"] < report.n_kept:
            filled = "" if table is None else f"{counts['table']:,} from the table, "
            console.result(
                f"  {name}: {counts['source']:,} from the source, {filled}"
                f"{counts['unknown']:,} unknown"
            )
    if report.skipped:
        console.say(f"  all of them: {report.path / 'skipped.jsonl'}")


def _columns(pairs: list[str]) -> dict[str, str]:
    """``e_hull=energy`` as a mapping from labels to columns.

    Raises:
        RecipeError: no assignment.
    """
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise RecipeError(f"--label {pair} names no column.", fix="Write e_hull=COLUMN.")
        columns[name] = column
    return columns
