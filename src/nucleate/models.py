"""Where models are: shipped by name, a folder, or the model of a run."""

from __future__ import annotations

from pathlib import Path

from nucleate.policies.checkpoint import CARD, SHIPPED, resolve

MODEL_FOLDER = "model"
"""Where a run keeps its tuned model."""


def model_folder(name_or_path: str | Path) -> Path:
    """Folder of a model given by shipped name, by its folder, or by the folder of its run.

    Raises:
        CheckpointError: there is none.
    """
    inside = Path(name_or_path) / MODEL_FOLDER
    if str(name_or_path) not in SHIPPED and (inside / CARD).is_file():
        return inside
    return resolve(name_or_path)


def names_model(name_or_path: str | Path) -> bool:
    """Whether this is a model rather than a file or folder of crystals."""
    path = Path(name_or_path)
    if str(name_or_path) in SHIPPED:
        return True
    return (path / CARD).is_file() or (path / MODEL_FOLDER / CARD).is_file()
