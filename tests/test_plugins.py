"""Plug-ins by name: lazy, suggested when misspelt, provider shown."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from nucleate import plugins
from nucleate.errors import MissingDependencyError, RecipeError


class Needs:
    """A property factory with settings."""

    def __init__(self, cutoff: float, mode: str = "fast") -> None:
        if cutoff < 0:
            raise ValueError("cutoff below 0")
        self.cutoff, self.mode = cutoff, mode


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(name: str, value: str) -> metadata.EntryPoint:
        return metadata.EntryPoint(name, value, plugins.PROPERTIES)

    found = [
        entry("needs", f"{__name__}:Needs"),
        entry("broken", f"{__name__}:Absent"),
        entry("lacking", "no_such_package.module:thing"),
        entry("density", f"{__name__}:Needs"),
    ]

    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return found if group == plugins.PROPERTIES else []

    monkeypatch.setattr(plugins.metadata, "entry_points", entry_points)


def test_built_in_and_installed_are_listed_and_built_in_names_stay() -> None:
    known = plugins.available(plugins.PROPERTIES)
    assert {"density", "e_above_hull", "needs"} <= set(known)
    assert known["density"].provider == "built in"
    assert known["needs"].provider != "built in"
    assert "chgnet" in plugins.available(plugins.POTENTIALS)


def test_create_with_settings() -> None:
    assert plugins.create(plugins.PROPERTIES, "density").name == "density"
    assert plugins.create(plugins.PROPERTIES, "needs", {"cutoff": 2}).cutoff == 2


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("densty", {}, "'density'"),
        ("needs", {"cutof": 1}, "'cutoff'"),
        ("needs", {}, "needs the setting 'cutoff'"),
        ("needs", {"cutoff": -1}, "cutoff below 0"),
        ("density", {"x": 1}, "no setting 'x'"),
        ("broken", {}, "Absent"),
    ],
)
def test_bad_names_and_settings(name: str, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plugins.create(plugins.PROPERTIES, name, settings)
    assert part in str(caught.value)


def test_absent_package_is_named() -> None:
    with pytest.raises(MissingDependencyError, match="no_such_package"):
        plugins.load(plugins.PROPERTIES, "lacking")


def test_custom_names() -> None:
    assert plugins.is_custom("my.py:f")
    assert plugins.is_custom("/a/b c.py:f")
    assert not plugins.is_custom("density")
    with pytest.raises(RecipeError, match="'timeout'"):
        plugins.check_custom_settings({"timout": 1}, "here")


def test_listing_imports_nothing() -> None:
    code = (
        "import sys; from nucleate import plugins; plugins.available('nucleate.properties');"
        "sys.exit(any(n.startswith(('nucleate.properties', 'torch', 'numpy')) for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
