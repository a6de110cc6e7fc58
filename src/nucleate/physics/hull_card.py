"""The card of a hull, where it comes from and what it may be used for, and where hulls lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nucleate.errors import InputError, cause, did_you_mean

SHIPPED = ("mp2020", "chgnet")
SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "data" / "hulls"
DEFAULT_HULL = "mp2020"
DERIVED = ("phases", "elements", "sha256")  # fields of the file that follow from the hull itself


@dataclass(frozen=True)
class HullCard:
    """Where a hull comes from and what it may be used for.

    Attributes:
        name: short name, such as "mp2020".
        potential: what gave the energies: "DFT" or the name of a potential.
        weights_hash: sha256 of the potential's weights, "" for DFT.
        level_of_theory: such as "PBE(+U)".
        correction: energy correction scheme included, "MP2020", "legacy" or "none".
        source: the data set.
        licence: licence of the data.
        attribution: whom to credit.
        date: ISO date of making.
        geometry: what was done to the structures ("as given", "relaxed").
        keep_ev_per_atom: phases up to this far above the hull are kept.
        data_hashes: sha256 of each input file.
        reference_source: what the energies of the elements are.
        reference_exceptions: element -> source, where it differs from ``reference_source``.
        notes: limits and remarks.
    """

    name: str
    potential: str
    level_of_theory: str
    correction: str
    source: str
    licence: str = ""
    attribution: str = ""
    date: str = ""
    weights_hash: str = ""
    geometry: str = "as given"
    keep_ev_per_atom: float = 0.0
    data_hashes: dict[str, str] = field(default_factory=dict)
    reference_source: str = ""
    reference_exceptions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def locate(name_or_path: str | Path) -> Path:
    """The .safetensors file of a shipped hull or of a path.

    Raises:
        InputError: neither.
    """
    name = str(name_or_path)
    if name in SHIPPED:
        return SHIPPED_FOLDER / f"{name}.safetensors"
    path = Path(name)
    if path.suffix == ".json":
        path = path.with_suffix(".safetensors")
    if not path.is_file():
        raise InputError(
            f"there is no hull {name!r}",
            f"it is neither a shipped hull nor a file. {did_you_mean(name, SHIPPED)}",
            "Give a shipped name or the path of a .safetensors hull file.",
        )
    return path


def read_card(path: Path) -> dict[str, Any]:
    """The fields of the card beside a hull file, the derived ones too.

    Raises:
        InputError: the card is absent, broken, or has unknown or missing fields.
    """
    file = path.with_suffix(".json")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {file}, the card of the hull {path.name}",
            cause(error),
            "Keep the .json card beside the .safetensors file.",
        ) from error
    known = {f.name for f in fields(HullCard)} | set(DERIVED)
    required = {"name", "potential", "level_of_theory", "correction", "source", *DERIVED}
    wrong = (set(card) - known if isinstance(card, dict) else {"<not a mapping>"}) or (
        required - set(card)
    )
    if wrong:
        raise InputError(
            f"the card {file} has unknown or missing fields: {', '.join(sorted(wrong))}",
            fix="Make the hull again with 'nucleate hull build'.",
        )
    return card
