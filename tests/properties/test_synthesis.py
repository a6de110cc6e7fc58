"""The score of likeness to what has been made."""

from __future__ import annotations

from pymatgen.core import Lattice, Structure

from nucleate.properties.synthesis import Synthesizability
from nucleate.protocols import Property


def test_known_crystals_score_above_nonsense() -> None:
    def rock_salt(cation: str, anion: str, edge: float) -> Structure:
        return Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(edge), [cation, anion], [[0] * 3, [0.5] * 3]
        )

    prop = Synthesizability()
    assert isinstance(prop, Property)
    assert (prop.name, prop.unit) == ("synthesizability", "")
    made = [rock_salt("Na", "Cl", 5.69), rock_salt("Mg", "O", 4.25), rock_salt("K", "Br", 6.7)]
    never = [rock_salt("Na", "K", 5.69), rock_salt("F", "Cl", 4.25), rock_salt("W", "I", 6.7)]
    scores = prop.evaluate([*made, *never]).value
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[:3].min() > max(0.5, scores[3:].max())
