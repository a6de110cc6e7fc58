"""A user's function as a property: what it returns is checked, what it raises is contained."""

from __future__ import annotations

import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate import plugins
from nucleate.errors import InputError, MissingDependencyError, RecipeError
from nucleate.execution.local import ProcessPool
from nucleate.objectives.evaluate import make_property
from nucleate.physics.cells import Cell
from nucleate.properties.custom import CustomProperty
from nucleate.protocols import Property, Status


def twice(structures: list[Any]) -> list[float | None]:
    return [None if s < 0 else 2.0 * s for s in structures]


def test_numbers_none_and_nan() -> None:
    prop = CustomProperty(twice, unit="eV")
    assert isinstance(prop, Property)
    scores = prop.evaluate([1, -1, float("nan"), 3])
    np.testing.assert_array_equal(scores.value, [2, np.nan, np.nan, 6])
    assert scores.status == [Status.OK, Status.UNSUPPORTED, Status.FAILED, Status.OK]
    assert scores.reason[1:3] == ["twice gave no value", "twice gave nan"]


@pytest.mark.parametrize("answer", [[1.0], 3.0, "ab", None])
def test_wrong_shapes_are_explained(answer: Any) -> None:
    def wrong(structures: list[Any]) -> Any:
        return answer

    with pytest.raises(InputError, match="'wrong' returned") as caught:
        CustomProperty(wrong).evaluate([1, 2])
    assert "each structure" in caught.value.fix


def test_what_is_no_number_fails_alone() -> None:
    scores = CustomProperty(lambda s: ["x", 1, np.float32(2)]).evaluate([1, 2, 3])
    assert scores.status == [Status.FAILED, Status.OK, Status.OK]
    assert "'x'" in scores.reason[0]


def test_key_follows_the_source(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    keys = set()
    for factor in (2, 3):
        file.write_text(f"def f(structures):\n    return [{factor} * s for s in structures]\n")
        prop = CustomProperty.from_file(file, "f")
        assert prop.evaluate([1]).value[0] == factor
        keys.add(prop.key)
    assert len(keys) == 2
    assert CustomProperty(lambda s: [1]).key != CustomProperty(lambda s: [2]).key


@pytest.mark.parametrize(
    ("text", "error", "part"),
    [
        ("def f(x:\n", InputError, "SyntaxError"),
        ("1 / 0\n", InputError, "ZeroDivisionError"),
        ("def g(x):\n    return x\n", RecipeError, "Known: g"),
        ("def ff(x):\n    return x\n", RecipeError, "'ff'"),
        ("", RecipeError, "Define it"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, error: type[Exception], part: str) -> None:
    file = tmp_path / "my.py"
    file.write_text(text)
    with pytest.raises(error) as caught:
        CustomProperty.from_file(file, "f")
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        CustomProperty.from_file(tmp_path / "absent.py", "f")


def test_crash_and_hang_in_a_pool_cost_one_crystal_each(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "import os, time\n"
        "def f(structures):\n"
        "    for s in structures:\n"
        "        if s == 2: os._exit(3)\n"
        "        if s == 4: time.sleep(600)\n"
        "        if s == 6: raise ValueError('six')\n"
        "    return [float(s) for s in structures]\n"
    )
    with ProcessPool(1) as pool:
        prop = CustomProperty.from_file(file, "f", pool=pool, timeout=3.0)
        scores = prop.evaluate(list(range(8)))
    expected = {2: Status.CRASHED, 4: Status.TIMEOUT, 6: Status.FAILED}
    assert scores.status == [expected.get(i, Status.OK) for i in range(8)]
    np.testing.assert_array_equal(scores.value[scores.ok], [0, 1, 3, 5, 7])


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


FAULTS = """
import os, time
assert "nucleate" not in __import__("sys").modules

def longest(structures):
    out = []
    for s in structures:
        a = s["lattice"][0][0]
        if a == 2: os._exit(3)
        if a == 3: time.sleep(600)
        if a == 4: raise ValueError("four")
        if a == 5: continue
        out.append({6: None, 7: float("nan"), 8: float("inf"), 9: "nine"}.get(a, a))
    return out
"""


def cubes(n: int) -> list[Cell]:
    return [Cell(np.eye(3) * a, np.array([29]), np.zeros((1, 3))) for a in range(n)]


def test_function_in_another_interpreter(tmp_path: Path, bare: str) -> None:
    file = tmp_path / "my.py"
    file.write_text(FAULTS)
    settings = {"python": bare, "structures": "dict", "timeout": 1.0, "unit": "Å"}
    prop = make_property(f"{file}:longest", settings)
    scores = prop.evaluate(cubes(12))
    expected = {2: Status.CRASHED, 3: Status.TIMEOUT} | dict.fromkeys(range(4, 10), Status.FAILED)
    expected[6] = Status.UNSUPPORTED
    assert scores.status == [expected.get(i, Status.OK) for i in range(12)]
    np.testing.assert_array_equal(scores.value[scores.ok], [0, 1, 10, 11])
    assert scores.reason[4].startswith("longest raised ValueError: four File ")
    assert scores.reason[2] == "longest: the worker process died (exit code 3)"
    assert scores.reason[3] == "longest: took longer than 1 s"
    assert "another number" in scores.reason[5]
    assert scores.reason[6:9] == ["longest gave no value", "longest gave nan", "longest gave inf"]
    assert prop.unit == "Å"
    assert bare in prop.key


def test_what_a_function_raises_is_counted_by_its_type_and_told_in_one_line(
    tmp_path: Path,
) -> None:
    file = tmp_path / "my.py"
    file.write_text("def f(structures):\n    raise RuntimeError('no SCF:\\n  step 100')\n")
    with ProcessPool(1) as pool:
        prop = make_property(f"{file}:f", {}, resources={"pool": pool})
        [reason] = prop.evaluate(cubes(2)[1:]).reason
    assert reason == "f raised RuntimeError: no SCF: step 100"


def test_what_another_interpreter_lacks_is_found_before_any_crystal(
    tmp_path: Path, bare: str
) -> None:
    file = tmp_path / "my.py"
    file.write_text("import ase\ndef f(structures): return [1.0 for _ in structures]\n")
    with pytest.raises(MissingDependencyError, match="No module named 'ase'"):
        CustomProperty.from_file(file, "f", python=bare, structures="dict")
    file.write_text("def f(structures): return [1.0 for _ in structures]\n")
    with pytest.raises(MissingDependencyError, match="No module named 'pymatgen'"):
        CustomProperty.from_file(file, "f", python=bare)
    with pytest.raises(InputError, match="has no 'g'"):
        CustomProperty.from_file(file, "g", python=bare, structures="dict")
    with pytest.raises(InputError, match="no Python interpreter"):
        CustomProperty.from_file(file, "f", python=str(tmp_path / "absent"))


def test_a_function_that_always_raises_there_is_a_broken_one(tmp_path: Path, bare: str) -> None:
    file = tmp_path / "my.py"
    file.write_text("def f(structures): return [s.volume for s in structures]\n")
    prop = CustomProperty.from_file(file, "f", python=bare, structures="dict")
    with pytest.raises(InputError, match="raised on each of 8 crystals") as caught:
        prop.evaluate(cubes(9)[1:])
    assert "AttributeError: 'dict' object has no attribute 'volume'" in caught.value.why


def test_settings_of_another_interpreter() -> None:
    plugins.check_custom_settings({"python": "python3", "workers": 2, "structures": "ase"}, "here")
    with pytest.raises(RecipeError, match="'workers' is a setting of another interpreter"):
        plugins.check_custom_settings({"workers": 2}, "here")
    with pytest.raises(RecipeError, match="Did you mean 'python'"):
        plugins.check_custom_settings({"pyton": "python3"}, "here")
