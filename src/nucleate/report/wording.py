"""How numbers, formulas and space groups are written on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent; a dash where undefined."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.{digits}f} %"


def times(value: float | None) -> str:
    """A ratio; a dash where undefined."""
    return DASH if value is None or not math.isfinite(value) else f"{TIMES}{value:.2f}"


def span(part: Mapping[str, float | None], scale: float = 100, digits: int = 1) -> str:
    """The ends of an interval times ``scale``; a dash where undefined."""
    low, high = part["low"], part["high"]
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return DASH
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


def short(value: float) -> str:
    """A number in few digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value % 1 else f"{value:.0f}"


def formula_html(formula: str) -> str:
    """A formula with its numbers as subscripts, everything else escaped."""
    out, digits = [], ""
    for character in formula + " ":
        if character.isdigit() or (character == "." and digits):
            digits += character
            continue
        if digits:
            out.append(f"<sub>{digits}</sub>")
            digits = ""
        out.append(escape(character))
    return "".join(out).strip()


def symbol(number: int) -> str:
    """Hermann-Mauguin symbol of a space group number; empty outside 1..230."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return str(sg_symbol_from_int_number(number)) if 1 <= number <= 230 else ""


def symbol_html(number: int) -> str:
    """The symbol with screw axes as subscripts and inversion axes overlined."""
    out, mark = [], ""
    for character in symbol(number):
        if character in "_-":
            mark = character
            continue
        if mark == "_":
            out.append(f"<sub>{escape(character)}</sub>")
        elif mark == "-":
            out.append(f'<span class="over">{escape(character)}</span>')
        else:
            out.append(escape(character))
        mark = ""
    return "".join(out)


def group_html(number: int) -> str:
    """Symbol and number of a space group."""
    return f"{symbol_html(number)} ({number})" if number else "unknown"
