"""One crystal's text or arrays into a cell: lattice, atomic numbers, fractional coordinates.

The parsers never raise for what they are given: a crystal that can't be used comes back as a
reason whose first words, before a colon, name the kind of defect ("disordered", "two atoms on one
spot", "broken cif", ...). Text is never evaluated as code. Crystals become plain elements on
sites: oxidation states, magnetic moments and labels are dropped.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.structures.validity import minimum_distance

if TYPE_CHECKING:
    from pymatgen.core import Structure

Cell = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row vectors (3, 3) in Å, atomic numbers (N,), fractional coordinates (N, 3)."""

COINCIDENT = 0.01  # Å; two atoms closer than this count as on one spot
ID_COLUMNS = ("id", "material_id", "mp_id", "mat_id")
_PARSE_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
    OverflowError,
    AssertionError,
    SyntaxError,
    RecursionError,
    MemoryError,
    StopIteration,
    NotImplementedError,
    OSError,
)  # what the parsers behind raise for broken text


@dataclass(frozen=True)
class RawRecord:
    """A crystal as found, not yet parsed; small enough to hand to another process.

    Attributes:
        kind: "cif", "poscar", "xyz", "structure" (text of a dictionary), "cell" (arrays) or "bad".
        payload: the text, arrays or, for "bad", the reason.
        source: "file" or "file:row"; rows and frames count from 1.
        properties: further columns of the row.
        alone: the file holds this crystal and nothing else.
    """

    kind: str
    payload: Any
    source: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False

    @property
    def id(self) -> str:
        """The row's own identifier if it has one, else the source."""
        named = (str(self.properties[c]) for c in ID_COLUMNS if c in self.properties)
        return next(named, self.source)


def parse_cell(raw: RawRecord, contacts: bool = True) -> tuple[Cell | None, str]:
    """The cell of an unparsed crystal, or None and a reason; never raises for its content.

    Args:
        raw: the crystal as found.
        contacts: refuse two atoms on one spot; without it that test is left to the caller.
    """
    if raw.kind == "bad":
        return None, str(raw.payload)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cell = _PARSERS[raw.kind](raw.payload)
    except _PARSE_ERRORS as error:
        text = _line(error)
        known = text.startswith(
            ("disordered", "no chemical", "no crystal", "no element", "no lattice")
        )
        crowded = re.search(r"Occupancy ([\d.]*\d) exceeded", text)
        if crowded:  # whole atoms, or shares of some
            kind = "two atoms on one spot" if float(crowded[1]) % 1 == 0 else "disordered"
            return None, f"{kind}: occupancies add up to {float(crowded[1]):g}"
        if "occupanc" in text and not known:
            return None, f"disordered: {text}"
        return None, text if known else f"broken {raw.kind}: {text}"
    reason = cell_defect(cell, contacts)
    return (None, reason) if reason else (cell, "")


def cell_defect(cell: Cell, contacts: bool = True) -> str:
    """Why arrays can't be taken for a crystal; empty if they can.

    Args:
        cell: row vectors in Å, atomic numbers, fractional coordinates.
        contacts: look for two atoms on one spot too.
    """
    lattice, numbers, frac = cell
    if len(numbers) == 0:
        return "no atoms"
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return "non-finite: a lattice vector or coordinate is not a finite number"
    if numbers.min() < 1 or numbers.max() > 118:
        return f"no chemical element: atomic numbers {numbers.min()} to {numbers.max()}"
    if abs(float(np.linalg.det(lattice))) < 1e-3:
        return "no volume: the lattice vectors lie in a plane"
    distance = minimum_distance(lattice, frac) if contacts else np.inf
    if distance < COINCIDENT:
        return f"two atoms on one spot: {distance:.4f} Å apart"
    return ""


def to_structure(cell: Cell) -> Structure:
    """A pymatgen structure of plain elements from row vectors, atomic numbers, coordinates."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(cell[0]), cell[1].tolist(), cell[2])


def to_cell(structure: Structure) -> Cell:
    """Arrays of an ordered structure of chemical elements.

    Raises:
        ValueError: a site is partially occupied, shared, or no chemical element.
    """
    found, coords = [], [np.zeros(0)]
    for site in structure.sites:
        species = site.species
        elements = tuple(species)
        if len(elements) != 1 or species.num_atoms != 1:
            raise ValueError(f"disordered: site {site.label} holds {site.species_string}")
        found.append(int(getattr(elements[0], "Z", 0)))
        coords.append(site.frac_coords)
    numbers = np.array(found, dtype=np.int64)
    if (numbers < 1).any():
        index = int(np.flatnonzero(numbers < 1)[0])
        raise ValueError(f"no chemical element: site {structure[index].species_string}")
    return np.array(structure.lattice.matrix), numbers, np.concatenate(coords).reshape(-1, 3)


def cell_digest(cell: Cell) -> bytes:
    """Hash of the exact numbers of a cell: equal digests, equal verdicts."""
    digest = hashlib.blake2b(digest_size=16)
    for part, kind in zip(cell, ("<f8", "<i8", "<f8"), strict=True):
        digest.update(np.ascontiguousarray(part, dtype=kind).tobytes())
    return digest.digest()


def _parse_cif(text: str) -> Cell:
    from pymatgen.io.cif import CifParser

    found = CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")
    if not found:
        raise ValueError("no crystal: the CIF lists no atoms")
    return to_cell(found[0])


def _parse_xyz(text: str) -> Cell:
    from ase.io.extxyz import read_xyz

    atoms = next(iter(read_xyz(io.StringIO(text), index=slice(None))))
    if atoms.cell.rank < 3:
        raise ValueError("no lattice: the comment line has no Lattice with three vectors")
    return atoms.cell.array, atoms.numbers, atoms.get_scaled_positions(wrap=False)


def _parse_poscar(text: str) -> Cell:
    from pymatgen.io.vasp import Poscar

    lines = text.splitlines()
    if len(lines) > 5 and not re.match(r"\s*[A-Za-z]", lines[5]):
        raise ValueError("no element symbols on line 6; write them above the counts")
    return to_cell(Poscar.from_str(text).structure)


def _parse_structure(payload: Any) -> Cell:
    """Pymatgen's dictionary or an OPTIMADE entry, as an object or as text (JSON, else literals)."""
    if isinstance(payload, str):
        try:
            payload = json.loads(payload)
        except json.JSONDecodeError:
            payload = ast.literal_eval(payload)
    payload = payload.get("attributes", payload)
    if "lattice_vectors" in payload:
        from pymatgen.core import Element

        lattice = np.array(payload["lattice_vectors"], dtype=float)
        numbers = [Element(symbol).Z for symbol in payload["species_at_sites"]]
        positions = np.array(payload["cartesian_site_positions"], dtype=float)
        return lattice, np.array(numbers), positions @ np.linalg.inv(lattice)
    lattice = np.array(payload["lattice"]["matrix"], dtype=float).reshape(3, 3)
    numbers, frac = [], []
    for index, site in enumerate(payload["sites"]):
        species = site["species"]
        if len(species) != 1 or abs(float(species[0].get("occu", 1)) - 1.0) > 1e-6:
            raise ValueError(f"disordered: site {index + 1} of the structure")
        numbers.append(_atomic_number(species[0]["element"]))
        frac.append(site["abc"])
    return lattice, np.array(numbers, dtype=np.int64), np.array(frac, dtype=float).reshape(-1, 3)


def _atomic_number(symbol: str) -> int:
    from pymatgen.core import Element

    if not Element.is_valid_symbol(symbol):
        raise ValueError(f"no chemical element: {symbol}")
    return int(Element(symbol).Z)


def _parse_arrays(payload: Iterable[Any]) -> Cell:
    lattice, numbers, frac = payload
    atoms = np.asarray(numbers, dtype=np.int64)
    return (
        np.asarray(lattice, dtype=float).reshape(3, 3),
        atoms,
        np.asarray(frac, dtype=float).reshape(len(atoms), 3),
    )


def _line(error: BaseException) -> str:
    """The message of an exception on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


_PARSERS = {
    "cif": _parse_cif,
    "poscar": _parse_poscar,
    "xyz": _parse_xyz,
    "structure": _parse_structure,
    "cell": _parse_arrays,
}
