"""Strict loading of YAML settings: every message names file, line, path and remedy."""

from __future__ import annotations

from typing import Literal

import pytest

from nucleate.config import Document, Settings, load_settings, option
from nucleate.errors import InputError, RecipeError


class Inner(Settings):
    """A section."""

    width: float = option(1.0, "how wide", "Å", gt=0)
    mode: Literal["fast", "slow"] = option("fast", "which way")


class Outer(Settings):
    """A file."""

    count: int = option(description="how many", ge=1)
    inner: Inner = option(Inner, "the section")
    items: tuple[Inner, ...] = option((), "several")
    names: tuple[str, ...] = option((), "names")


def fails(text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_settings(Outer, text, "file.yaml", overrides)
    for jargon in ("pydantic", "Input should", "validation error", "union", "instance of"):
        assert jargon not in str(caught.value)
    return caught.value


def test_defaults_and_values() -> None:
    read = load_settings(Outer, "count: 3\ninner: {width: 1e-4}\n", "file.yaml")
    assert (read.count, read.inner.width, read.inner.mode) == (3, 1e-4, "fast")


def test_yaml_1_2_scalars() -> None:
    text = "count: 1\nnames: [No, Y, on, 1_0, 12:30]\n"
    assert load_settings(Outer, text, "f").names == ("No", "Y", "on", "1_0", "12:30")


def test_unknown_key_names_line_path_and_neighbour() -> None:
    error = fails("count: 1\nitems:\n  - width: 2\n  - wdth: 3\n")
    assert "file.yaml, line 4" in error.what
    assert "items.1.wdth" in error.what
    assert "'width'" in error.fix


def test_unknown_key_comes_before_missing_key() -> None:
    assert "coun" in fails("coun: 1\n").what


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("count: 0\n", "line 1", "greater than or equal to 1"),
        ("count: 1\ninner:\n  width: -1\n", "line 3", "greater than 0"),
        ("count: 1\ninner:\n  mode: quick\n", "line 3", "fast, slow"),
        ("count: 1\ninner:\n  width: .inf\n", "line 3", "finite"),
        ("count: one\n", "line 1", "integer"),
        ("inner: {}\n", "file.yaml", "no default"),
    ],
)
def test_bad_values(text: str, where: str, why: str) -> None:
    error = fails(text)
    assert where in error.what
    assert why in error.why


def test_description_and_unit_are_in_the_remedy() -> None:
    assert "how wide [Å]" in fails("count: 1\ninner:\n  width: 0\n").fix


def test_not_yaml_and_not_a_mapping() -> None:
    assert (
        "line 3" in fails("count: 1\ninner:\n width: 1\n  mode: fast\n").what
        or "line 4" in fails("count: 1\ninner:\n width: 1\n  mode: fast\n").what
    )
    assert "list" in fails("- 1\n").why
    assert "missing" in fails("").what


def test_key_given_twice() -> None:
    error = fails("count: 1\ncount: 2\n")
    assert "twice" in error.what
    assert "line 2" in error.what


def test_overrides_win_and_are_named() -> None:
    read = load_settings(
        Outer, "count: 1\nitems: [{}]\n", "f", ["count=5", "items.0.width=2", "inner.mode=slow"]
    )
    assert (read.count, read.items[0].width, read.inner.mode) == (5, 2.0, "slow")
    assert "inner.wdth=2" in fails("count: 1\n", "inner.wdth=2").what
    assert "count=0" in fails("count: 1\n", "count=0").what


@pytest.mark.parametrize("assignment", ["count", "=1", "a..b=1", "items.3.width=1", "count=[1"])
def test_bad_overrides(assignment: str) -> None:
    assert assignment in fails("count: 1\nitems: [{}]\n", assignment).what


def test_no_code_in_yaml() -> None:
    fails("count: !!python/object/apply:os.getpid []\n")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().width = 2.0


def test_document_locates_nested_values() -> None:
    document = Document("a:\n  b:\n    - c: 1\n", "x")
    assert document.locate(("a", "b", 0, "c")) == "x, line 3"


def test_missing_file() -> None:
    from nucleate.recipe import load_recipe

    with pytest.raises(InputError, match="no file"):
        load_recipe("/nowhere/mine.yaml")
