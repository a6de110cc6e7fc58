"""``nucleate score`` and ``nucleate evaluate``."""

from __future__ import annotations

import math
from collections import Counter
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
from nucleate.errors import InputError

MOST_SHOWN = 50
NEEDS_REFERENCE = ("novel", "new_formula", "stable_new_formula", "sun")
"""Fractions that mean nothing without training crystals to compare with."""


Cache = Annotated[
    Path | None,
    typer.Option(help="Evaluations to reuse and add to, such as runs/evaluations.sqlite."),
]


def score(
    files: Annotated[list[str], typer.Argument(help="Files, folders or quoted globs.")],
    prop: Annotated[
        str, typer.Option("--property", help="e_above_hull, density, or path.py:function.")
    ] = "e_above_hull",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of the property, such as hull=chgnet.")
    ] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax the crystals first.")] = False,
    out: Annotated[Path | None, typer.Option(help="Table to write, .csv or .jsonl.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; 0: one on each core.", min=0)
    ] = None,
    cache: Cache = None,
) -> None:
    """Score crystals: value, status and reason for each."""
    from nucleate.scoring import score
    from nucleate.structures.writing import check_place, write_table

    if out is not None:
        if out.suffix.lower() not in (".csv", ".jsonl"):
            raise InputError(
                f"{out}: no table format has this extension.", fix="End the name in .csv or .jsonl."
            )
        check_place(out)
    values = console.assignments(settings or ()) | ({"relax": True} if relax else {})
    with console.err().status("scoring") as status:
        rows = score(
            files,
            prop,
            values,
            workers=workers,
            cache=cache,
            progress=lambda done: status.update(f"scoring: {done} crystals done"),
        )
    name = list(rows[0])[3]
    if out is None:
        _show_scores(rows, name)
    else:
        write_table(rows, out)
        console.result(f"{len(rows)} rows in {out}")
    counts = Counter(row["status"] for row in rows)
    if set(counts) != {"ok"}:
        console.say(", ".join(f"{n} {status}" for status, n in counts.most_common()))
        skipped = [row for row in rows if row["status"] != "ok"]
        for row in skipped[:10]:
            console.say(f"  {row['source']}: {row['reason']}")
        if len(skipped) > 10:
            console.say(f"  and {len(skipped) - 10} more")
    if not counts["ok"]:
        raise typer.Exit(InputError.exit_code)


def _show_scores(rows: list[dict[str, Any]], name: str) -> None:
    unit = f" / {rows[0]['unit']}" if rows[0]["unit"] else ""
    supported = any("hull_support" in row for row in rows)
    heads = ("source", "formula", f">{name}{unit}", *[">hull support"] * supported, "status")
    shown = console.table(heads)
    for row in rows[:MOST_SHOWN]:
        value = row[name]
        text = "" if math.isnan(value) else f"{value:.4g}" if name == "density" else f"{value:.4f}"
        cells = [str(row["source"]), row["formula"], text, row["status"]]
        if supported:
            known = row.get("hull_support", math.nan)
            cells.insert(3, "" if math.isnan(known) else f"{known:.0f}")
        shown.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console.out().print(shown)
    if len(rows) > MOST_SHOWN:
        console.say(f"{len(rows) - MOST_SHOWN} more; write all with --out table.csv")


def evaluate(
    source: Annotated[list[str], typer.Argument(help="A model, a run, or files of crystals.")],
    against: Annotated[str | None, typer.Option(help="Model to compare with.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", help="Samples for each seed.", min=1)] = 1000,
    seeds: Annotated[str, typer.Option(help="Such as 1,2,3.")] = "1",
    reference: Annotated[
        str | None,
        typer.Option(help="What novel is measured against: prepared data or files of crystals."),
    ] = None,
    hull: Annotated[
        list[str] | None, typer.Option(help="Name or file; the first is the main judge.")
    ] = None,
    stable_below: Annotated[float, typer.Option(help="eV/atom.")] = 0.1,
    relax: Annotated[bool, typer.Option("--relax", help="Relax before judging.")] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0: one on each core.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for all tables.")] = None,
    cache: Cache = None,
    space_groups: SpaceGroups = None,
    elements: Elements = None,
    exclude: Exclude = None,
    max_atoms: MaxAtoms = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    coordinate_temperature: CoordinateTemperature = None,
) -> None:
    """Judge a model or crystals: valid, stable, unique, novel, all three (S.U.N.)."""
    settings = condition(
        space_groups, elements, exclude, temperature, top_p, coordinate_temperature, max_atoms
    ).condition
    numbers = console.integers(seeds, "--seeds")
    if not numbers:
        raise typer.BadParameter("give at least one seed")
    from nucleate.evaluation.compare import basis
    from nucleate.judging import DEFAULT_HULLS, evaluate

    result = evaluate(
        source,
        against=against,
        n=n,
        seeds=numbers,
        hulls=hull or DEFAULT_HULLS,
        reference=reference,
        condition=settings,
        stable_below=stable_below,
        relax=relax,
        workers=workers,
        out=out,
        cache=cache,
        on_stage=console.say,
    )
    if result.comparison is not None:
        console.out().print(
            console.comparison_table(result.comparison, str(against), " ".join(source))
        )
        for line in basis(result.comparison):
            console.result(line)
    else:
        _show_evaluations(result.evaluations)
    if out is not None:
        console.result(f"tables: {out}")


def _show_evaluations(evaluations: list[Any]) -> None:
    from nucleate.evaluation.compare import LABELS, definitions, drawn
    from nucleate.evaluation.summary import pool

    pooled = pool(evaluations, "judged")
    settings = pooled["settings"]
    shown = console.table(
        ("", "hull", ">% of all [95 %]", ">count"),
        title=f"{pooled['n']:,} crystals",
    )
    main = settings["main_hull"] or ""
    unknown = NEEDS_REFERENCE if settings["reference"].startswith("none given") else ()
    for flag, part in pooled["fractions"].items():
        if flag in unknown:
            continue
        judged = main if flag in pooled["fractions_by_hull"].get(main, {}) else ""
        shown.add_row(LABELS.get(flag, flag), judged, console.percent(part), str(part["count"]))
    for name, flags in list(pooled["fractions_by_hull"].items())[1:]:
        for flag, part in flags.items():
            if flag in unknown:
                continue
            shown.add_row(LABELS.get(flag, flag), name, console.percent(part), str(part["count"]))
    console.out().print(shown)
    for line in (definitions(settings), drawn(settings)):
        if line:
            console.result(line)
