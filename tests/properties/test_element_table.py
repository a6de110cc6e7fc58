"""Tables of the elements: what is read, and what is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nucleate.errors import InputError
from nucleate.properties.element_table import as_table, read_table, shipped_table, table_hash


def written(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_stand_at_their_atomic_number(tmp_path: Path) -> None:
    path = written(tmp_path, "# facts\nelement,year,price\nH,2020,1.5\n\nOg,2021,0\n")
    table = read_table(path, "price")
    assert table.shape == (119,)
    assert table[1] == 1.5 and table[118] == 0
    assert np.isfinite(table).sum() == 2
    np.testing.assert_array_equal(table, as_table({"H": 1.5, "Og": 0.0}))


def test_the_hash_changes_with_a_number() -> None:
    assert table_hash(as_table({"H": 1.0})) == table_hash(as_table({"H": 1.0}))
    assert table_hash(as_table({"H": 1.0})) != table_hash(as_table({"H": 1.1}))
    assert table_hash(as_table({"H": 1.0})) != table_hash(as_table({"He": 1.0}))


@pytest.mark.parametrize(
    ("name", "column", "known"),
    [("prices_2025-07.csv", "usd_per_kg", 85), ("crustal_abundance.csv", "mg_per_kg", 88)],
)
def test_shipped_tables(name: str, column: str, known: int) -> None:
    table = shipped_table(name, column)
    assert np.isfinite(table).sum() == known
    assert (table[np.isfinite(table)] > 0).all()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("element,cost\nH,1\n", ["no column 'price'", "element, cost"]),
        ("", ["no column 'element'", "none"]),
        ("# c\nelement,price\nH,1\nFee,2\n", ["line 4", "'Fee'", "'Fe'"]),
        ("element,price\nH,1\n# c\nH,2\n", ["line 4", "H stands there twice"]),
        ("element,price\nH,cheap\n", ["line 2", "price can't be 'cheap'"]),
        ("element,price\nH,-1\n", ["line 2", "not negative"]),
        ("element,price\nH,nan\n", ["line 2", "finite"]),
        ("element,price\nH\n", ["line 2", "None"]),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_table(written(tmp_path, text), "price")
    for part in [str(tmp_path / "table.csv"), *parts]:
        assert part in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_table(tmp_path / "absent.csv", "price")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="can't be read"):
        read_table(tmp_path / "binary.csv", "price")
