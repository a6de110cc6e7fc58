"""Predictors on disk: weights as safetensors in half precision, all else as JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from nucleate.errors import CheckpointError, did_you_mean
from nucleate.predictors.features import frozen_chgnet
from nucleate.predictors.head import Head, HeadConfig
from nucleate.predictors.predictor import Predictor, Standardisation
from nucleate.predictors.tables import Target
from nucleate.structures.elements import ATOMIC_NUMBERS, SYMBOLS
from nucleate.structures.writing import replacing

FORMAT = "nucleate-predictor-1"
WEIGHTS, CARD = "predictor.safetensors", "predictor.json"
SHIPPED = ("band_gap", "dielectric_total", "refractive_index", "synthesizability")


def save_predictor(predictor: Predictor, folder: str | Path) -> str:
    """Write ``predictor.safetensors`` and ``predictor.json`` into a folder.

    Learnt weights are rounded to half precision; :func:`halved` rounds those of a predictor in
    memory, so that what is measured is what is saved.

    Returns:
        sha256 of the weights.
    """
    folder = Path(folder)
    tensors = {}
    for k, head in enumerate(predictor.heads):
        learnt = dict(head.named_parameters())
        for name, tensor in head.state_dict().items():
            kept = tensor.detach().half() if name in learnt else tensor
            tensors[f"heads.{k}.{name}"] = kept.contiguous()
    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    card = {
        "format": FORMAT,
        "target": predictor.target.model_dump(mode="json"),
        "head": asdict(predictor.heads[0].config),
        "heads": len(predictor.heads),
        "standardisation": asdict(predictor.standardisation),
        "elements": {SYMBOLS[z - 1]: n for z, n in sorted(predictor.element_counts.items())},
        "features": {"potential": "chgnet", "weights_sha256": frozen_chgnet().weights_hash},
        "weights_sha256": digest,
        "card": predictor.card,
    }
    with replacing(folder / WEIGHTS, "wb") as stream:
        stream.write(data)
    with replacing(folder / CARD) as stream:
        stream.write(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    predictor.weights_sha256 = digest
    return digest


def halved(head: Head) -> Head:
    """The head with its learnt weights rounded to half precision, in place."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.half().float())
    return head


def locate(name_or_path: str | Path) -> Path:
    """Folder of a shipped predictor by name, or of any by path.

    Raises:
        CheckpointError: neither.
    """
    if str(name_or_path) in SHIPPED:
        return Path(str(files("nucleate").joinpath("data/predictors", str(name_or_path))))
    folder = Path(name_or_path)
    if folder.name in (WEIGHTS, CARD):
        folder = folder.parent
    if not (folder / CARD).is_file():
        raise CheckpointError(
            f"There is no predictor at {name_or_path}.",
            f"A predictor is a folder with {WEIGHTS} and {CARD}, or the name of one that ships.",
            did_you_mean(str(name_or_path), SHIPPED),
        )
    return folder


def load_predictor(name_or_path: str | Path) -> Predictor:
    """Read a predictor.

    Raises:
        CheckpointError: there is none, its files don't belong together, or it was trained on the
            features of another CHGNet than the one that is installed.
    """
    folder = locate(name_or_path)
    card = read_card(folder)
    try:
        data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != card["weights_sha256"]:
            raise ValueError(f"they are not those that {CARD} describes (sha256 differs)")
        tensors = load(data)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"The weights {folder / WEIGHTS} can't be used.",
            f"{error}.",
            "Copy both files again from the same source.",
        ) from error
    installed = frozen_chgnet().weights_hash
    if card["features"]["weights_sha256"] != installed:
        raise CheckpointError(
            f"The predictor {folder} was trained on another CHGNet.",
            f"Its features are those of weights {card['features']['weights_sha256'][:12]}..., "
            f"the package chgnet that is installed brings {installed[:12]}...",
            "Install the version of chgnet that its card names, or train it again.",
        )
    try:
        heads = []
        for k in range(card["heads"]):
            head = Head(HeadConfig(**card["head"]))
            own = f"heads.{k}."
            names = [name for name in tensors if name.startswith(own)]
            head.load_state_dict({n.removeprefix(own): tensors[n].float() for n in names})
            heads.append(head.eval())
        return Predictor(
            Target.model_validate(card["target"]),
            heads,
            Standardisation(**card["standardisation"]),
            {ATOMIC_NUMBERS[symbol]: count for symbol, count in card["elements"].items()},
            card["card"],
            card["weights_sha256"],
        )
    except (TypeError, KeyError, RuntimeError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / CARD} describes no predictor.",
            f"{type(error).__name__}: {str(error).splitlines()[0]}.",
            "Copy it again together with the weights.",
        ) from error


def read_card(folder: Path) -> dict[str, Any]:
    """What the file beside the weights says.

    Raises:
        CheckpointError: it can't be read or is of another format.
    """
    path = folder / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        return card
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no card of a predictor.",
            f"{type(error).__name__}: {error}.",
            f"Expected is JSON of format {FORMAT!r}.",
        ) from error
