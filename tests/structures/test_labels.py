"""Labels of a source, and tables that fill in what it lacks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from nucleate.errors import InputError, RecipeError
from nucleate.structures.labels import LABELS, LabelTable, label
from nucleate.structures.parsing import RawRecord
from nucleate.structures.writing import write_table

ROWS = [
    {"source": "a.csv:1", "id": "007", "e_above_hull": 0.25, "status": "ok"},
    {"source": "a.csv:2", "id": "mp-2", "e_above_hull": math.nan, "status": "failed"},
    {"source": "a.csv:3", "id": "mp-3", "e_above_hull": -0.5, "status": "ok"},
]


@pytest.mark.parametrize(
    ("properties", "value"),
    [
        ({"e_hull": 0.1, "ehull": 0.2}, 0.1),
        ({"ehull": 0.2}, 0.2),
        ({"e_hull": math.nan, "e_above_hull": 3}, 3.0),
        ({"e_hull": "unknown"}, math.nan),
        ({"e_hull": True}, math.nan),
        ({"e_hull": math.inf}, math.nan),
        ({}, math.nan),
    ],
)
def test_the_first_number_counts(properties, value):
    found = label(RawRecord("cell", None, "memory", properties), LABELS["e_hull"])
    assert found == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl", "scores.parquet"])
def test_a_table_of_scores_in_any_format(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        write_table(ROWS, path)
    table = LabelTable.read(path)
    assert table.columns == {"e_hull": "e_above_hull"}
    found = table.of(["mp-3", "absent", "007", "mp-2"])
    assert list(found) == ["e_hull"]
    assert found["e_hull"] == pytest.approx([-0.5, math.nan, 0.25, math.nan], nan_ok=True)


def test_a_column_that_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("material_id,e_hull,better,gap\na,1,2,3\nb,4,,5\n")
    assert LabelTable.read(path).of(["a"])["e_hull"] == [1]
    table = LabelTable.read(path, {"e_hull": "better", "band_gap": "gap"})
    found = table.of(["b", "a"])
    assert found["e_hull"] == pytest.approx([math.nan, 2], nan_ok=True)
    assert np.array_equal(found["band_gap"], [5, 3])


def test_rows_that_agree_or_complete_each_other(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,e_hull\na,\nb,1\na,0.5\nb,1\n")
    assert np.array_equal(LabelTable.read(path).of(["a", "b"])["e_hull"], [0.5, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,e_hull\na,1\n", ["no column with the ids", "name, e_hull", "material_id"]),
        ("id,energy\na,1\n", ["no column with a label", "id, energy", "--label"]),
        ("id,e_hull\na,1\na,2\n", ["two things about a", "e_hull is 1 and 2"]),
        ("id,e_hull\na,low\n", ["'e_hull'", "numbers", "low"]),
        ("", ["can't be read"]),
    ],
)
def test_a_table_of_no_use(tmp_path, text, words):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        LabelTable.read(path)
    for word in ["table.csv", *words]:
        assert word in str(error.value)


def test_names_that_are_not_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,e_above_hull_mp2020\na,1\n")
    with pytest.raises(RecipeError, match="'e_hull'"):
        LabelTable.read(path, {"ehull": "e_above_hull_mp2020"})
    with pytest.raises(InputError, match="'e_above_hull_mp2020'"):
        LabelTable.read(path, {"e_hull": "e_above_hull_mp202"})
    with pytest.raises(InputError, match="There is no such file"):
        LabelTable.read(tmp_path / "gone.csv")
    with pytest.raises(InputError, match="extension"):
        LabelTable.read(tmp_path)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"broken\.parquet can't be read"):
        LabelTable.read(broken)
