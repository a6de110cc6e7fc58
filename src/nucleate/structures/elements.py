"""Element symbols, and which elements a design leaves out unless asked.

Radioactive here means: no isotope is stable or long-lived enough for everyday handling. These are
technetium, promethium, and everything from polonium up, thorium and uranium included (primordial,
but alpha emitters under licence). Bismuth stays: the half-life of its one natural isotope,
2.0e19 years (de Marcillac et al., Nature 422, 876, 2003), makes it stable for every purpose.

Beside safety there is a reason in the data: such elements have few competing phases in a
reference hull, so that almost any compound of theirs looks stable; an optimiser finds that out.
"""

from __future__ import annotations

from collections.abc import Iterable

from nucleate.errors import RecipeError, did_you_mean

_ROWS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As "
    "Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu "
    "Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np "
    "Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)

SYMBOLS: tuple[str, ...] = tuple(_ROWS.split())
"""Symbols of elements 1 to 118; the symbol of atomic number Z is ``SYMBOLS[Z - 1]``."""

ATOMIC_NUMBERS: dict[str, int] = {symbol: i + 1 for i, symbol in enumerate(SYMBOLS)}

RADIOACTIVE: frozenset[int] = frozenset({43, 61, *range(84, 119)})
"""Atomic numbers of Tc, Pm and all elements from Po on."""

NOBLE_GASES: frozenset[int] = frozenset({2, 10, 18, 36, 54, 86, 118})
"""Atomic numbers of He, Ne, Ar, Kr, Xe, Rn and Og."""


def atomic_numbers(symbols: Iterable[str]) -> list[int]:
    """Atomic numbers of symbols, order kept.

    Raises:
        RecipeError: a name that is no element.
    """
    numbers = []
    for symbol in symbols:
        if symbol not in ATOMIC_NUMBERS:
            near = did_you_mean(symbol.capitalize(), SYMBOLS)
            fix = near if near.startswith("Did") else "Use symbols such as Fe, O, Na."
            raise RecipeError(f"{symbol!r} is not the symbol of an element.", fix=fix)
        numbers.append(ATOMIC_NUMBERS[symbol])
    return numbers


def allowed_elements(
    allow: Iterable[str] | None = None,
    deny: Iterable[str] = (),
    *,
    exclude_radioactive: bool = True,
    exclude_noble_gases: bool = False,
) -> list[int]:
    """Atomic numbers that may occur, ascending.

    Args:
        allow: only these; None means all 118. An element named here is allowed even if radioactive.
        deny: never these.
        exclude_radioactive: leave out :data:`RADIOACTIVE` where ``allow`` is None.
        exclude_noble_gases: leave out :data:`NOBLE_GASES` where ``allow`` is None.

    Raises:
        RecipeError: unknown symbols, or nothing is left.
    """
    if allow is None:
        numbers = set(range(1, 119))
        if exclude_radioactive:
            numbers -= RADIOACTIVE
        if exclude_noble_gases:
            numbers -= NOBLE_GASES
    else:
        numbers = set(atomic_numbers(allow))
    numbers -= set(atomic_numbers(deny))
    if not numbers:
        raise RecipeError(
            "No element is left to build crystals from.",
            "Every allowed element is denied too.",
            "Widen condition.elements.allow or shorten condition.elements.deny.",
        )
    return sorted(numbers)
