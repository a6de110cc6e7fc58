"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nucleate.cli.console import integers, names
from nucleate.errors import RecipeError

if TYPE_CHECKING:
    from nucleate.recipe import Recipe

SpaceGroups = Annotated[
    str | None,
    typer.Option(help="Numbers such as 225,221 or 195-230; by default as in the training data."),
]
Elements = Annotated[str | None, typer.Option(help="Only these, such as Li,Fe,O.")]
Exclude = Annotated[
    str | None, typer.Option(help="Never these. Radioactive ones are left out unless allowed.")
]
MaxAtoms = Annotated[
    int | None, typer.Option(help="Most atoms in the primitive cell; 20.", min=1, max=10_000)
]
Temperature = Annotated[
    float, typer.Option(help="Below 1: closer to the likeliest.", min=0.01, max=10.0)
]
CoordinateTemperature = Annotated[
    float | None,
    typer.Option(help="The same for coordinates and lattice.", min=0.001, max=10.0),
]
TopP = Annotated[
    float, typer.Option(help="Keep the likeliest tokens of this probability.", min=0.01, max=1.0)
]


def condition(
    space_groups: str | None,
    elements: str | None,
    exclude: str | None,
    temperature: float,
    top_p: float,
    coordinate_temperature: float | None,
    max_atoms: int | None = None,
) -> Recipe:
    """A recipe that says only what sampling is held to.

    Raises:
        RecipeError: an unknown element, a space group out of range, or nothing left to draw.
    """
    from nucleate.config import Document, parse
    from nucleate.recipe import Recipe
    from nucleate.structures.elements import atomic_numbers

    groups = integers(space_groups, "--space-groups")
    outside = [group for group in groups if not 1 <= group <= 230]
    if outside:
        raise RecipeError(
            f"--space-groups: there is no space group {outside[0]}.",
            "They are numbered from 1 to 230.",
            "Mend the list.",
        )
    for option, text in (("--elements", elements), ("--exclude", exclude)):
        try:
            atomic_numbers(names(text))
        except RecipeError as error:
            raise RecipeError(f"{option}: {error.what}", error.why, error.fix) from error
    held: dict[str, Any] = {
        "space_groups": groups or "training",
        "elements": {"allow": names(elements) or None, "deny": names(exclude)},
        "temperature": temperature,
        "top_p": top_p,
    }
    if coordinate_temperature is not None:
        held["coordinate_temperature"] = coordinate_temperature
    if max_atoms is not None:
        held["max_atoms"] = max_atoms
    document = Document("", "the options")
    document.data = {"condition": held}
    return parse(Recipe, document)
