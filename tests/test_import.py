from __future__ import annotations

import subprocess
import sys

import pytest

import nucleate

HEAVY = ("torch", "pymatgen", "chgnet", "ase", "scipy", "pandas")


def loaded_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has imported after running the code."""
    listing = f"{code}\nimport sys; print(*sorted(m for m in {HEAVY!r} if m in sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split("\n")[-2].split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import nucleate; dir(nucleate)") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["tune", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "from nucleate.cli.main import app\n"
        f"try: app(args={arguments!r}, prog_name='nucleate')\n"
        "except SystemExit as ended: assert ended.code == 0"
    )
    assert loaded_after(code) == set()


def test_the_package_is_the_command() -> None:
    command = [sys.executable, "-m", "nucleate", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout == f"nucleate {nucleate.__version__}\n"


def test_importing_opens_no_socket_and_touches_no_file() -> None:
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event.startswith('socket.') or event in ('os.mkdir', 'os.remove'):\n"
        "        raise AssertionError(event)\n"
        "sys.addaudithook(watch)\n"
        "sys.dont_write_bytecode = True\n"
        "import nucleate.cli.main"
    )
    assert loaded_after(code) == set()


def test_public_names_are_there_and_few() -> None:
    assert set(nucleate.__all__) == set(nucleate._HOME)
    assert len(nucleate.__all__) <= 9
    for name in nucleate.__all__:
        assert callable(getattr(nucleate, name))
        assert name in dir(nucleate)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tuna'"):
        nucleate.tuna  # noqa: B018
