"""The best crystals: drawn cells, a sortable table and downloads."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nucleate.evaluation.best import DOUBTFUL_BELOW
from nucleate.report.data import ReportCrystal, ReportData
from nucleate.report.wording import DASH, formula_html, group_html, signed

TILES = 8


def crystals(data: ReportData, cifs: Sequence[str], drawings: Sequence[Mapping[str, Any]]) -> str:
    """Gallery of drawn cells, and the sortable table with downloads."""
    if not data.crystals:
        return '<p class="empty">No crystal has been written yet.</p>'
    labels = list(dict.fromkeys(label for c in data.crystals for label in c.e_above_hull))
    gallery = "".join(
        _tile(i, data.crystals[i], drawings[i], labels) for i in range(min(TILES, len(cifs)))
    )
    heads = "".join(
        f"<th class='n'><button>E_hull {escape(s)}, eV/atom</button></th>" for s in labels
    )
    rewarded = any(math.isfinite(c.reward) for c in data.crystals)
    if rewarded:
        heads = f"<th class='n'><button>reward</button></th>{heads}"
    found = any(c.step is not None for c in data.crystals)
    if found:
        heads = f"<th><button>found</button></th>{heads}"
    rows = "".join(
        _crystal_row(i, crystal, cif, labels, rewarded, found)
        for i, (crystal, cif) in enumerate(zip(data.crystals, cifs, strict=True))
    )
    everything = _uri(extxyz(data.crystals), "chemical/x-xyz")
    doubtful = any(v < DOUBTFUL_BELOW for c in data.crystals for v in c.e_above_hull.values())
    warning = (
        f"<p class='note warn'>† more than {-DOUBTFUL_BELOW} eV/atom below the hull: more likely a "
        "failure of the potential than a discovery.</p>"
        if doubtful
        else ""
    )
    return (
        f'<p>{_origin(data)}</p><div class="gallery">{gallery}</div>'
        '<p class="note">Drag or use the arrow keys to rotate, '
        "+ and - to zoom. Conventional cells; bonds up to 1.15 times the sum of covalent radii, "
        f'between metals none.</p><p><a class="button" download="crystals.extxyz" '
        f'href="{everything}">Download all {len(cifs)} as extended XYZ</a></p>'
        '<div class="scroll tall"><table class="sortable"><thead><tr><th class="n"><button>rank'
        "</button></th><th><button>formula</button></th><th><button>space group</button></th>"
        f"<th class='n'><button>atoms</button></th>{heads}<th><button>new?</button></th>"
        "<th class='n'><button>hull support</button></th><th>view</th><th>file</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{warning}"
        "<p class='note'>Atoms: in the primitive cell. "
        "Hull support: competing phases that the main hull knows; with few of them, stability was "
        "tested against little.</p>"
        '<dialog id="large" aria-labelledby="large-title"><h3 id="large-title"></h3>'
        '<canvas class="cell" id="large-cell" tabindex="0" role="img" '
        'aria-label="unit cell, rotatable with the arrow keys"></canvas><p class="legend" '
        'id="large-legend"></p><button id="large-close" class="button">Close</button></dialog>'
    )


def _origin(data: ReportData) -> str:
    """Out of how many crystals, and from where, these were chosen."""
    of_run = sum(c.step is not None for c in data.crystals)
    samples = "judged samples of the tuned model"
    chosen = data.manifest.get("best")
    if not isinstance(chosen, Mapping):  # of a release that looked at these alone
        return f"Chosen from the {samples}."
    kind = "new and stable" if chosen["stable"] else "new"
    return (
        f"Chosen from the {chosen['evaluated']:,} crystals with a reward that the run evaluated "
        f"({chosen['new_formulas']:,} formulas that are {kind}, of each the best) and from "
        f"{chosen['samples']:,} {samples}. Of the {len(data.crystals)} shown here the run found "
        f"{of_run}."
    )


def _tile(i: int, crystal: ReportCrystal, drawn: Mapping[str, Any], labels: Sequence[str]) -> str:
    formula = formula_of(crystal)
    legend = "".join(
        f"<span><i style='background:{escape(e['colour'], quote=True)}'></i>"
        f"{escape(e['symbol'])}</span>"
        for e in drawn["elements"]
    )
    energy = _energy(crystal.e_above_hull.get(labels[0], math.nan)) if labels else DASH
    group = group_html(crystal.space_group)
    return (
        f'<figure class="tile"><canvas class="cell" data-cell="{i}" tabindex="0" role="img" '
        f'aria-label="unit cell of {escape(formula, quote=True)}, rotatable with the arrow keys">'
        f"</canvas><figcaption><b>{formula_html(formula)}</b> <span>{group}</span>"
        f'<span class="energy">{energy} eV/atom</span>'
        f'<span class="legend">{legend}</span></figcaption></figure>'
    )


def _crystal_row(
    i: int, crystal: ReportCrystal, cif: str, labels: Sequence[str], rewarded: bool, found: bool
) -> str:
    formula = formula_of(crystal)
    values = [crystal.e_above_hull.get(label, math.nan) for label in labels]
    cells = "".join(
        f"<td class='n' data-v='{v if math.isfinite(v) else ''}'>{_energy(v)}</td>" for v in values
    )
    if rewarded:
        reward = crystal.reward
        shown = f"{reward:.4g}" if math.isfinite(reward) else DASH
        cells = f"<td class='n' data-v='{reward if shown != DASH else ''}'>{shown}</td>{cells}"
    if found:
        place = "sample" if crystal.step is None else f"step {crystal.step}"
        order = "" if crystal.step is None else crystal.step
        told = f"{place}, relaxed" if crystal.relaxed else place
        cells = f"<td data-v='{order}'>{told}</td>{cells}"
    new = "new formula" if crystal.new_formula else "new structure" if crystal.new else "known"
    if crystal.sun:
        new = f"{new}, S.U.N."
    support = "" if crystal.hull_support is None else str(crystal.hull_support)
    name = "".join(c if c.isalnum() else "_" for c in formula)[:60]
    return (
        f'<tr id="crystal-{i}">'
        f"<td class='n' data-v='{i + 1}'>{i + 1}</td><td data-v=\"{escape(formula, quote=True)}\">"
        f"<b>{formula_html(formula)}</b></td><td data-v='{crystal.space_group}'>"
        f"{group_html(crystal.space_group)}</td>"
        f"<td class='n'>{crystal.n_atoms}</td>{cells}<td>{new}</td>"
        f"<td class='n' data-v='{support}'>{support or DASH}</td>"
        f'<td><button class="link" data-show="{i}" aria-label="view '
        f'{escape(formula, quote=True)}">view</button></td>'
        f'<td><a download="{i + 1:03d}_{name}.cif" '
        f'href="{_uri(cif, "chemical/x-cif")}">CIF</a></td></tr>'
    )


def extxyz(found: Sequence[ReportCrystal]) -> str:
    """All crystals as one extended XYZ text, energies above hull (eV/atom) in the comment line."""
    import io

    from ase.io import write
    from pymatgen.io.ase import AseAtomsAdaptor

    frames = []
    for crystal in found:
        atoms = AseAtomsAdaptor.get_atoms(crystal.structure, msonable=False)
        atoms.info = {"formula": formula_of(crystal), "space_group": crystal.space_group}
        for label, value in crystal.e_above_hull.items():
            if math.isfinite(value):
                safe = "".join(c if c.isalnum() else "_" for c in label)
                atoms.info[f"e_above_hull_{safe}_eV_per_atom"] = value
        frames.append(atoms)
    stream = io.StringIO()
    write(stream, frames, format="extxyz")
    return stream.getvalue()


def formula_of(crystal: ReportCrystal) -> str:
    """Formula as given, or the structure's reduced one."""
    return crystal.formula or str(crystal.structure.composition.reduced_formula)


def _uri(content: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}"


def _energy(value: float) -> str:
    if not math.isfinite(value):
        return DASH
    return signed(value, 3) + (" †" if value < DOUBTFUL_BELOW else "")
