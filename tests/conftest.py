"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real crystals and reference numbers; tests that need it skip where it is absent."""
    path = Path(os.environ.get("NUCLEATE_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no reference data at {path}; set NUCLEATE_SHARED to run this test")
    return path
