"""Command-line arguments that several benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path


def existing(text: str) -> Path:
    """A file or folder that is there; a missing one is refused before any work."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {text}")
    return path
