"""How well a crystal's lattice fits that of a substrate."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nucleate.errors import InputError, NucleateError, RecipeError, did_you_mean
from nucleate.execution.chunks import spread
from nucleate.execution.pool import Pool
from nucleate.physics.cells import Cell, as_cell, as_structure
from nucleate.physics.coincidence import (
    Coincidence,
    Facet,
    conventional_lattice,
    facets,
    smallest_coincidence,
)
from nucleate.properties.shared import scores_of
from nucleate.protocols import CostClass, Scores

if TYPE_CHECKING:
    from pymatgen.core import Structure

SUBSTRATES: dict[str, tuple[tuple[float, float, bool], str]] = {
    "Al2O3": ((4.7587, 12.9929, True), "PDF 46-1212, corundum"),
    "AlN": ((3.112, 4.982, True), "Vurgaftman 2003, wurtzite"),
    "GaAs": ((5.65325, 5.65325, False), "Vurgaftman 2001"),
    "GaN": ((3.189, 5.185, True), "Vurgaftman 2003, wurtzite"),
    "GaP": ((5.4505, 5.4505, False), "Vurgaftman 2001"),
    "GaSb": ((6.0959, 6.0959, False), "Vurgaftman 2001"),
    "Ge": ((5.6576, 5.6576, False), "PDF 04-0545"),
    "InAs": ((6.0583, 6.0583, False), "Vurgaftman 2001"),
    "InP": ((5.8697, 5.8697, False), "Vurgaftman 2001"),
    "MgO": ((4.2112, 4.2112, False), "PDF 45-0946"),
    "Si": ((5.43102, 5.43102, False), "CODATA 2018"),
    "SiC": ((3.073, 10.053, True), "PDF 22-1317, 4H"),
    "SrTiO3": ((3.905, 3.905, False), "PDF 35-0734"),
    "TiO2": ((4.5933, 2.9592, False), "PDF 21-1276, rutile"),
    "ZnO": ((3.24982, 5.20661, True), "PDF 36-1451, wurtzite"),
}
"""Conventional cells at room temperature, measured: (a and c in Å, whether hexagonal), source.

PDF is the Powder Diffraction File; Vurgaftman 2001 and 2003 are J. Appl. Phys. 89, 5815 and 94,
3675; CODATA's lattice parameter of silicon is 5.431020511 Å.
"""

DEFAULT_SUBSTRATE = "Si(100)"


class CoincidentArea:
    """Smallest area on which a crystal as a film and a substrate repeat together, Å².

    The smaller it is, the better the film can grow. Zur and McGill's search with pymatgen's
    tolerances (:mod:`nucleate.physics.coincidence`) over the facets of the conventional cell of
    the crystal as it is; one that fits nowhere is unsupported. ``Scores.extra`` holds
    ``mismatch``, the larger relative difference of the lengths of both, and the film's facet,
    ``film_h``, ``film_k``, ``film_l``.

    Args:
        substrate: a name of :data:`SUBSTRATES` or a file of one crystal, and the facet:
            "Si(100)". Without a facet, all up to ``max_miller``. Negative indices have a minus,
            and indices of more than one digit commas: "ZnO(1-10)", "Si(0,-11,1)".
        max_miller: highest Miller index of the film's facets.
        max_area: Å², of the areas that are tried.
        timeout: seconds for one crystal in a worker process.
        pool: worker processes; without it, this process.

    Raises:
        RecipeError: there is no such substrate, or a setting is out of range.
        InputError: the substrate's file can't be used.
    """

    name = "coincident_area"
    unit = "Å²"
    cost = CostClass.MODEL
    paths: ClassVar[Mapping[str, Container[str]]] = {"substrate": SUBSTRATES}

    def __init__(
        self,
        substrate: str = DEFAULT_SUBSTRATE,
        max_miller: int = 1,
        max_area: float = 400.0,
        timeout: float | None = 60.0,
        pool: Pool | None = None,
    ) -> None:
        if not (isinstance(max_miller, int) and max_miller > 0 and max_area > 0):
            raise RecipeError(
                f"max_miller is {max_miller}, max_area {max_area}",
                fix="max_miller is a positive integer, max_area a positive number of Å².",
            )
        if timeout is not None and not timeout > 0:
            raise RecipeError(
                f"timeout can't be {timeout} s", fix="Give a positive number, or null."
            )
        self.substrate = substrate
        self.max_miller, self.max_area = max_miller, max_area
        self.timeout, self.pool = timeout, pool
        self.lattice, self.facet = read_substrate(substrate)

    @property
    def key(self) -> str:
        """Cache key: the substrate's cell and facet, and how far it was searched."""
        cell = ",".join(f"{x:.5f}" for x in self.lattice.ravel())
        facet = "any" if self.facet is None else "{},{},{}".format(*self.facet)
        return f"{self.name}/1/{cell}/{facet}/{self.max_miller}/{self.max_area:g}"

    def evaluate(self, structures: Sequence[Structure | Cell]) -> Scores:
        """Areas of B crystals, order kept."""
        work = partial(_areas, self.lattice, self.facet, self.max_miller, self.max_area)
        if self.pool is not None:
            results = spread(self.pool, work, structures, self.timeout).result()
        else:
            results = [_alone(work, structure) for structure in structures]
        return scores_of(results, self._judge, _columns)

    def _judge(self, result: Coincidence | None) -> tuple[float, str]:
        if result is None:
            return np.nan, f"no coincident area up to {self.max_area:g} Å² on {self.substrate}"
        return result.area, ""


def read_substrate(text: str) -> tuple[np.ndarray, Facet | None]:
    """(3, 3) conventional cell, Å, and the facet, None if none is named.

    Args:
        text: such as "Si(100)", "ZnO" or "mine.cif(1-10)".

    Raises:
        RecipeError: neither a known substrate nor a file, or the facet can't be read.
        InputError: the file can't be used.
    """
    found = re.fullmatch(r"(.+?)(?:\(([-\d, ]+)\))?", str(text).strip())
    name, indices = (found.group(1), found.group(2)) if found else (str(text), None)
    facet: Facet | None = None
    if indices is not None:
        pattern = r"-?\d+" if "," in indices else r"-?\d"
        read = [int(i) for i in re.findall(pattern, indices)]
        if len(read) != 3 or not any(read):
            raise RecipeError(
                f"{text!r} names no facet.", fix="Write three Miller indices: 'Si(100)'."
            )
        h, k, l_ = (i // int(np.gcd.reduce(read)) for i in read)
        facet = (h, k, l_)
    if name in SUBSTRATES:
        (a, c, hexagonal), _ = SUBSTRATES[name]
        lattice = np.diag([a, a, c])
        if hexagonal:  # as pymatgen's conventional cell has it
            lattice[:2, :2] = [[a / 2, -a * 0.75**0.5], [a / 2, a * 0.75**0.5]]
        return lattice, facet
    if not Path(name).is_file():
        raise RecipeError(
            f"There is no substrate {name!r}.",
            f"Those known are {', '.join(SUBSTRATES)}.",
            did_you_mean(name, SUBSTRATES) + " Or name a file that holds the crystal.",
        )
    from nucleate.structures.io import read as read_file

    crystals = [record.structure for record in read_file(name)]
    if len(crystals) != 1 or crystals[0] is None:
        raise InputError(
            f"the substrate {name} holds {len(crystals)} crystals", fix="Name a file of one."
        )
    return conventional_lattice(crystals[0]), facet


def _areas(
    substrate: np.ndarray,
    facet: Facet | None,
    max_miller: int,
    max_area: float,
    cells: list[Cell],
) -> list[Coincidence | Exception | None]:
    """What a worker runs: for each cell its match, None where nothing matches."""
    wanted = facets(max_miller)
    on = wanted if facet is None else [facet]
    results: list[Coincidence | Exception | None] = []
    for cell in cells:
        try:
            film = conventional_lattice(as_structure(cell))
            results.append(smallest_coincidence(film, substrate, wanted, on, max_area))
        except Exception as error:  # that crystal's own failure
            results.append(error)
    return results


def _alone(work: Callable[[list[Cell]], list[Any]], structure: Structure | Cell) -> Any:
    try:
        cell = as_cell(structure)
    except NucleateError as error:
        return error
    return work([cell])[0]


def _columns(result: Coincidence | None) -> dict[str, float]:
    if result is None:
        return {}
    indices = zip(("film_h", "film_k", "film_l"), map(float, result.film), strict=True)
    return {"mismatch": result.mismatch, **dict(indices)}
