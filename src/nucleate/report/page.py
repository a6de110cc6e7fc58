"""One self-contained ``report.html``: no request leaves it, nothing in it comes from elsewhere.

Everything that stems from files or from the run is escaped, and a content security policy allows
only the page's own script (by its hash), inline styles and data URIs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from nucleate.report import gallery, sections
from nucleate.report.cells import drawing
from nucleate.report.data import REPORT_HTML, ReportData, load_run

SECTIONS = (
    ("results", "Results"),
    ("objective", "Objective"),
    ("crystals", "Best crystals"),
    ("training", "Training"),
    ("energies", "Energies and funnel"),
    ("elements", "Elements"),
    ("groups", "Space groups"),
    ("numbers", "All numbers"),
    ("appendix", "Settings and provenance"),
)


def build_report(source: Path | ReportData, out: Path | None = None) -> Path:
    """Write the report.

    Args:
        source: folder of a run, finished or not, or the data themselves.
        out: file to write; ``report.html`` in the run's folder by default.

    Returns:
        The path written.

    Raises:
        InputError: a file of the run can't be read.
        StorageError: the report can't be written.
    """
    from nucleate.structures.writing import replacing

    if isinstance(source, ReportData):
        if out is None:
            raise ValueError("out is needed where the source is no folder")
        data, path = source, out
    else:
        data, path = load_run(source), out or source / REPORT_HTML
    html = render(data)
    with replacing(path) as stream:
        stream.write(html)
    return path


def render(data: ReportData) -> str:
    """The page as text."""
    from nucleate.structures.writing import cif_text

    cifs = [crystal.cif or cif_text(crystal.structure) for crystal in data.crystals]
    drawings = [drawing(crystal.structure) for crystal in data.crystals]
    bodies = {
        "results": sections.headline(data),
        "objective": sections.objective(data),
        "crystals": gallery.crystals(data, cifs, drawings),
        "training": sections.curves(data),
        "energies": sections.energies(data),
        "elements": sections.elements(data),
        "groups": sections.space_groups(data),
        "numbers": sections.table_of_results(data),
        "appendix": sections.appendix(data),
    }
    shown = [(key, name) for key, name in SECTIONS if bodies[key]]
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in shown)
    content = "".join(
        f'<section id="{key}"><h2>{escape(name)}</h2>{bodies[key]}</section>' for key, name in shown
    )
    style, script = _asset("style.css"), _asset("viewer.js")
    title = escape(f"{data.title} · nucleate")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head>\n'
        f"<body><header><h1>{escape(data.title)}</h1><p>{escape(_subtitle(data))}</p></header>"
        f'<nav aria-label="sections">{links}</nav>\n<main>{content}</main>'
        "<footer><p>Written by nucleate. This file is complete in itself and asks nothing of the "
        "network.</p></footer>"
        f'\n<script type="application/json" id="cells">{_json_block(drawings)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _subtitle(data: ReportData) -> str:
    parts = []
    evaluations = [v for v in data.column("evaluations") if v == v]
    if evaluations:
        parts.append(f"{len(data.metrics):,} steps, {evaluations[-1]:,.0f} evaluations")
    settings = data.comparison.get("tuned", {}).get("settings", {})
    if settings.get("potential"):
        parts.append(f"potential {settings['potential']}")
    if settings.get("main_hull"):
        parts.append(f"hull {settings['main_hull']}")
    created = data.manifest.get("created")
    if created:
        parts.append(str(created))
    return " · ".join(parts) or "no step logged yet"


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (resources.files("nucleate.report") / name).read_text(encoding="utf-8")


def _json_block(content: Any) -> str:
    """JSON that can't end the script element it stands in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
