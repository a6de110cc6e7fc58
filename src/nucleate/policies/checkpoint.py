"""Policies on disk: weights as safetensors, all else as JSON; never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nucleate.errors import CheckpointError, StorageError, did_you_mean
from nucleate.policies.published import PublishedConfig, PublishedTransformer
from nucleate.policies.published_policy import PublishedPolicy
from nucleate.policies.site_transformer import SiteTransformer, SiteTransformerConfig
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.structures.writing import follow_umask

FORMAT = "nucleate-policy-1"
WEIGHTS, CARD = "model.safetensors", "model.json"
FORMULAS = "formulas.npy"
"""Formulas of the training data, beside the weights: what novelty is measured against."""
SHIPPED = {"base": "data/models/base"}


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, write: object) -> None:
    """Call ``write(temporary_path)``, then move the result into place."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)  # type: ignore[operator]
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        follow_umask(temporary)  # safetensors makes files that nobody else may read
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"can't write {path}", str(error), "free some space or choose another folder"
        ) from error


def save_policy(
    policy: WyckoffPolicy, folder: Path, *, precision: torch.dtype = torch.float32
) -> str:
    """Write ``model.safetensors`` and ``model.json`` into a folder.

    Args:
        policy: what to save.
        folder: where.
        precision: of the weights in the file; they are float32 again when they are read.

    Returns:
        sha256 of the weights, by which manifests name a policy.
    """
    tensors = {
        name: tensor.detach().to("cpu", precision).contiguous()
        for name, tensor in policy.network.state_dict().items()
    }
    write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path))
    digest = sha256(folder / WEIGHTS)
    card = {
        "format": FORMAT,
        "network": policy.network.config.network,
        "config": policy.network.config.to_dict(),
        "weights_sha256": digest,
        "metadata": policy.metadata,
    }
    text = json.dumps(card, indent=1, sort_keys=True)
    write_atomic(folder / CARD, lambda path: path.write_text(text + "\n"))
    return digest


def resolve(name_or_path: str | Path) -> Path:
    """Folder of a shipped policy by name, or of any policy by path."""
    if str(name_or_path) in SHIPPED:
        return Path(str(files("nucleate").joinpath(SHIPPED[str(name_or_path)])))
    folder = Path(name_or_path)
    if folder.is_file():
        folder = folder.parent
    if not (folder / CARD).is_file():
        raise CheckpointError(
            f"no policy at {name_or_path}",
            f"a policy is a folder with {WEIGHTS} and {CARD}, or the name of a shipped one",
            did_you_mean(str(name_or_path), SHIPPED),
        )
    return folder


def load_policy(name_or_path: str | Path, *, device: str = "cpu") -> WyckoffPolicy:
    """Read a policy; its ``metadata["weights_sha256"]`` is verified against the weights.

    Raises:
        CheckpointError: the folder holds no policy, or its weights are truncated or foreign.
    """
    folder = resolve(name_or_path)
    card = _read_card(folder / CARD)
    try:
        tensors = load_file(folder / WEIGHTS, device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"can't read the weights {folder / WEIGHTS}",
            f"the file is truncated or no safetensors file ({error})",
            "copy it again, or fall back to an earlier checkpoint",
        ) from error
    if sha256(folder / WEIGHTS) != card["weights_sha256"]:
        raise CheckpointError(
            f"the weights {folder / WEIGHTS} are not those that {CARD} describes",
            "their sha256 differs",
            "copy both files again from the same source",
        )
    try:
        policy = build_policy(card)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{folder / CARD} describes no network",
            f"{type(error).__name__}: {error}",
            "copy it again together with the weights",
        ) from error
    try:
        policy.network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights {folder / WEIGHTS} don't fit the network that {CARD} describes",
            str(error).splitlines()[-1].strip(),
            "use the two files that were saved together",
        ) from error
    policy.network.to(torch.device(device)).eval()
    policy.metadata["weights_sha256"] = card["weights_sha256"]
    return policy


def build_policy(card: Mapping[str, Any]) -> WyckoffPolicy:
    """The policy that a card describes, with random weights."""
    kinds = {
        SiteTransformerConfig.network: (SiteTransformer, SiteTransformerConfig, WyckoffPolicy),
        PublishedConfig.network: (PublishedTransformer, PublishedConfig, PublishedPolicy),
    }
    if card["network"] not in kinds:
        raise CheckpointError(
            f"unknown network {card['network']!r}", fix=did_you_mean(str(card["network"]), kinds)
        )
    network, config, policy = kinds[card["network"]]
    return policy(network(config(**card["config"])), card.get("metadata"))


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
        if card["format"] != FORMAT:
            raise KeyError(f"format {card['format']!r}")
        return {key: card[key] for key in ("network", "config", "weights_sha256", "metadata")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no policy card",
            f"{type(error).__name__}: {error}",
            f"expected JSON of format {FORMAT!r}",
        ) from error
