"""``nucleate hull``: reference hulls."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nucleate.cli import console
from nucleate.errors import counted

if TYPE_CHECKING:
    from nucleate.physics.hull import Hull

app = typer.Typer(help="Reference hulls for energies above hull.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option(help="Name of the hull; that of OUT by default.")]
Licence = Annotated[str, typer.Option(help="Of the data.")]
Attribution = Annotated[str, typer.Option(help="Whom to credit for the data.")]
Keep = Annotated[
    float, typer.Option(help="eV/atom; phases up to this far above the hull are kept.", min=0.0)
]


class Kind(StrEnum):
    """What an imported file holds."""

    auto = "auto"
    table = "table"
    entries = "entries"


@app.command("info")
def info(
    hull: Annotated[
        str | None, typer.Argument(help="Name or file; without it, those that ship.")
    ] = None,
    formula: Annotated[
        str | None, typer.Option("--formula", help="Show what this composition decays to.")
    ] = None,
) -> None:
    """Show where a hull comes from and what it covers."""
    from nucleate.physics.hull import Hull
    from nucleate.physics.hull_card import DEFAULT_HULL, SHIPPED

    for name in [hull] if hull is not None else SHIPPED:
        loaded = Hull.load(name)
        card = loaded.card
        default = "  (default)" if name == DEFAULT_HULL else ""
        console.result(
            f"{card.name}{default}: {len(loaded):,} phases, {len(loaded.elements)} elements"
        )
        rows = {
            "energies": f"{card.potential}, {card.level_of_theory}, correction {card.correction}",
            "source": card.source,
            "geometry": card.geometry,
            "references": card.reference_source,
            "licence": card.licence,
            "attribution": card.attribution,
            "date": card.date,
            "hash": loaded.hash,
        }
        for label, text in rows.items():
            if text:
                console.result(f"  {label:<12} {text}")
        for note in card.notes:
            console.result(f"  {'note':<12} {note}")
        if formula is not None:
            parts = loaded.decomposition(formula)
            text = " + ".join(f"{amount:.3f} {phase}" for phase, amount in parts.items())
            console.result(f"  {formula} -> {text} (fractions of atoms)")
            n = int(loaded.support([formula])[0])
            console.result(f"  {'support':<12} {n:,} known compounds of these elements compete")


@app.command("build")
def build(
    source: Annotated[str, typer.Argument(help="Crystals: file, folder or quoted glob.")],
    out: Annotated[Path, typer.Argument(help="Hull file to write, .safetensors.")],
    potential: Annotated[str, typer.Option(help="Gives the energies.")] = "chgnet",
    name: Name = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax the crystals first.")] = False,
    max_volume: Annotated[
        float, typer.Option(help="Å³ per atom; emptier cells are left out.")
    ] = 60,
    max_e_hull: Annotated[
        float | None, typer.Option(help="eV/atom, by the data's own label.")
    ] = None,
    keep: Keep = 0.0,
    fallback: Annotated[
        str | None, typer.Option(help="Hull that lends the energies of missing elements.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of energies; the same command goes on there when stopped."),
    ] = None,
    licence: Licence = "",
    attribution: Attribution = "",
    workers: Annotated[int, typer.Option(help="Processes; 0: one on each core.", min=0)] = 0,
) -> None:
    """Make a hull from crystals with a potential."""
    from nucleate.cli.progress import counting
    from nucleate.design import potential_pool
    from nucleate.physics.hull import Hull
    from nucleate.physics.hull_build import build_hull
    from nucleate.physics.relax import RelaxSettings
    from nucleate.physics.survey import ENERGIES

    folder = work or out.with_name(f"{out.stem}-energies")
    lender = None if fallback is None else Hull.load(fallback)
    with potential_pool(potential, workers) as pooled, counting("energies") as progress:
        hull = build_hull(
            source,
            pooled,
            folder,
            name=name or out.stem,
            licence=licence,
            attribution=attribution,
            relax=RelaxSettings() if relax else None,
            max_vol_per_atom=max_volume,
            max_e_hull=max_e_hull,
            keep=keep,
            fallback=lender,
            progress=progress,
        )
    _show_written(hull, written := hull.save(out))
    console.result(f"use it with: nucleate score FILES --set hull={written}")
    console.say(
        f"energies of all crystals: {folder / ENERGIES}; the folder {folder} is what the command "
        "goes on from when stopped, and may be removed"
    )


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="Formation energies (.csv, .parquet) or entries (.json[.gz]).")
    ],
    out: Annotated[Path, typer.Argument(help="Hull file to write, .safetensors.")],
    name: Name = None,
    kind: Annotated[Kind, typer.Option(help="What the source holds.")] = Kind.auto,
    correction: Annotated[
        str | None, typer.Option(help="MP2020 or none; entries know it themselves.")
    ] = None,
    references: Annotated[
        str | None, typer.Option(help="Hull that lends a table the energies of the elements.")
    ] = None,
    formula_column: Annotated[str, typer.Option(help="Of a table.")] = "formula",
    energy_column: Annotated[str, typer.Option(help="Of a table, eV/atom.")] = "e_form",
    keep: Keep = 0.0,
    licence: Licence = "",
    attribution: Attribution = "",
) -> None:
    """Make a hull from energies that others have computed."""
    from nucleate.physics.hull_import import import_hull

    hull = import_hull(
        source,
        name=name or out.stem,
        kind=kind.value,
        correction=correction,
        references=references,
        formula_column=formula_column,
        energy_column=energy_column,
        keep=keep,
        licence=licence,
        attribution=attribution,
    )
    _show_written(hull, hull.save(out))
    if not bool((hull.references == hull.references).all()):
        console.say(
            "it holds formation energies only: give --references to compare a potential with it"
        )


def _show_written(hull: Hull, path: Path) -> None:
    """How large a hull is, and where it went."""
    size = f"{counted(len(hull), 'phase')} of {counted(len(hull.elements), 'element')}"
    console.result(f"{size} in {path}")
