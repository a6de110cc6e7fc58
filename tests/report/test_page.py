"""The page in a real browser: no error, no request, no injected script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from nucleate.report.data import ReportData
from nucleate.report.page import build_report, render

HOSTILE = (
    "<script>document.title='broken in'</script><img src=x onerror=\"document.title='broken'\">"
)
VOID = {"meta", "link", "img", "br", "input"}


@pytest.fixture(scope="module")
def chromium() -> str:
    """Path of the browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium found; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def html(report_data: ReportData) -> str:
    """The page of the synthetic run."""
    return render(report_data)


def browse(
    chromium: str, page: Path, folder: Path, *options: str
) -> tuple[str, list[str], set[str]]:
    """Open the page; the DOM after its scripts ran, console messages, and URLs asked for."""
    net_log = folder / "net.json"
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={net_log}",
            "--enable-logging=stderr",
            "--v=0",
            "--window-size=1280,2000",
            "--virtual-time-budget=3000",
            *options,
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, _requests(net_log)


def _requests(net_log: Path) -> set[str]:
    """URLs that the page asked for, of neither file nor data.

    What the browser asks for on its own account has no origin as its initiator.
    """
    text = net_log.read_text(errors="replace").rstrip()
    if not text.endswith("}"):  # the browser was quick to leave
        text = text.rstrip(",") + "]}"
    asked = [event.get("params", {}) for event in json.loads(text)["events"]]
    return {
        params["url"]
        for params in asked
        if params.get("initiator", "not an origin") != "not an origin"
        and not params["url"].startswith(("file:", "data:"))
    }


class Outline(HTMLParser):
    """Ids, tags and the balance of open and closed elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.unbalanced: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids |= {value for key, value in attrs if key == "id" and value}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


def outline(html: str) -> Outline:
    """Parse a page."""
    parsed = Outline()
    parsed.feed(html)
    return parsed


def test_the_test_sees_errors_and_requests(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<img src="http://nowhere.invalid/a.png"><script>console.error("oops");'
        'fetch("http://nowhere.invalid/b").catch(() => 0)</script>'
    )
    _, console, requests = browse(chromium, page, tmp_path)
    assert any("oops" in line for line in console)
    assert requests == {"http://nowhere.invalid/a.png", "http://nowhere.invalid/b"}


def test_browser_finds_no_error_makes_no_request_and_draws(
    chromium: str, tmp_path: Path, report_data: ReportData
) -> None:
    page = build_report(report_data, tmp_path / "report.html")
    dom, console, requests = browse(chromium, page, tmp_path)
    assert console == []
    assert requests == set()
    assert 'data-ready="yes"' in dom  # the script ran to its end
    found = outline(dom)
    assert {"results", "crystals", "training", "energies", "elements", "groups"} <= found.ids
    assert found.tags.count("canvas") == 9  # eight tiles and the large view
    assert found.tags.count("svg") >= 10
    assert len(re.findall(r'<canvas[^>]* width="\d{3}', dom)) >= 8  # sized by drawing


def test_the_page_says_how_samples_were_drawn_and_whether_they_were_relaxed(
    report_data: ReportData,
) -> None:
    assert "not stated" in render(report_data) and "unrelaxed, as sampled" in render(report_data)
    comparison = json.loads(json.dumps(report_data.comparison))
    comparison["tuned"]["settings"]["extra"] = {"condition": {"coordinate_temperature": 0.37}}
    comparison["tuned"]["settings"]["relaxed"] = True
    page = render(replace(report_data, comparison=comparison))
    assert "coordinate temperature 0.37" in page and "relaxed before scoring" in page


def test_hostile_text_stays_text(chromium: str, tmp_path: Path, report_data: ReportData) -> None:
    comparison = json.loads(json.dumps(report_data.comparison))
    comparison["base"]["failures"]["valid"] = {HOSTILE: 3}
    comparison["tuned"]["settings"].update(potential=HOSTILE, matcher=HOSTILE, reference=HOSTILE)
    comparison["tuned"]["settings"]["hulls"] = {HOSTILE: {"source": HOSTILE}}
    comparison["rows"][0].update(label=HOSTILE, hull=HOSTILE)
    comparison["elements"]["rows"][0]["element"] = HOSTILE
    first = replace(
        report_data.crystals[0],
        formula=HOSTILE,
        cif=HOSTILE,
        e_above_hull={HOSTILE: 0.0},
    )
    data = replace(
        report_data,
        title=HOSTILE,
        comparison=comparison,
        crystals=[first, *report_data.crystals[1:3]],
        recipe=f"</pre>{HOSTILE}",
        manifest={"created": HOSTILE, HOSTILE: HOSTILE},
    )
    page = build_report(data, tmp_path / "report.html")
    assert HOSTILE not in page.read_text()
    dom, console, requests = browse(chromium, page, tmp_path)
    assert console == []
    assert requests == set()
    assert outline(dom).tags.count("img") == 0
    assert outline(dom).tags.count("script") == 2
    assert "<title>&lt;script&gt;" in dom  # and no script changed it


def test_markup_is_balanced_with_and_without_data(html: str) -> None:
    for page in (html, render(ReportData("empty"))):
        found = outline(page)
        assert found.unbalanced == []
        assert found.open == []


def test_page_names_no_address(html: str) -> None:
    links = re.findall(r'(?:src|href|action|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', html)
    assert links
    assert all(unquote(link).startswith(("#", "data:")) for link in links)
    assert "default-src 'none'" in html
    assert "eval(" not in html
    assert "fetch(" not in html


def test_downloads_hold_the_crystals(html: str, report_data: ReportData) -> None:
    import base64

    from pymatgen.core import Structure

    cifs = re.findall(r'href="data:chemical/x-cif;base64,([^"]+)"', html)
    assert len(cifs) == len(report_data.crystals)
    text = base64.b64decode(cifs[0]).decode()
    wanted = report_data.crystals[0].structure.composition
    assert Structure.from_str(text, fmt="cif").composition.reduced_formula == wanted.reduced_formula
    frames = base64.b64decode(re.findall(r'x-xyz;base64,([^"]+)"', html)[0]).decode()
    assert frames.count("Lattice=") == len(report_data.crystals)


def test_numbers_of_the_comparison_are_on_the_page(html: str, report_data: ReportData) -> None:
    row = next(r for r in report_data.comparison["rows"] if r["quantity"] == "sun")
    assert f"{row['base']['count']:,} → {row['tuned']['count']:,} of {row['tuned']['n']:,}" in html
    assert f"{100 * row['tuned']['value']:.1f} %" in html
