"""What README and docs tell a user to type is what the program understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from nucleate.cli.main import app
from nucleate.config import load_settings
from nucleate.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                line = line.split("  #")[0].split(" > ")[0].strip()
                line = re.sub(r"^torchrun .*--no-python ", "", line)
                if line.startswith("nucleate ") and not line.endswith("..."):
                    found.append(line)
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_every_command_is_understood(line: str) -> None:
    command = typer.main.get_command(app)
    arguments = shlex.split(line, comments=True)[1:]
    name = "nucleate"
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, line
        name, arguments = arguments[0], arguments[1:]
        command = command.commands[name]
    context = command.make_context(name, list(arguments))
    assert context.command is command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_and_code_are_whole(page: Path) -> None:
    for text in blocks(page, "yaml"):
        recipe = load_settings(Recipe, text, page.name)
        assert recipe.name == yaml.safe_load(text)["name"]
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_command_is_in_the_readme() -> None:
    text = PAGES[0].read_text("utf-8")
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"nucleate {name}" in text, name
