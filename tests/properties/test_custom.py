"""A user's function as a property: what it returns is checked, what it raises is contained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucleate.errors import InputError, RecipeError
from nucleate.execution.local import ProcessPool
from nucleate.properties.custom import CustomProperty
from nucleate.protocols import Property, Status


def twice(structures: list[Any]) -> list[float | None]:
    return [None if s < 0 else 2.0 * s for s in structures]


def test_numbers_none_and_nan() -> None:
    prop = CustomProperty(twice, unit="eV")
    assert isinstance(prop, Property)
    scores = prop.evaluate([1, -1, float("nan"), 3])
    np.testing.assert_array_equal(scores.value, [2, np.nan, np.nan, 6])
    assert scores.status == [Status.OK, Status.FAILED, Status.FAILED, Status.OK]
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
