"""Published checkpoints, converted to safetensors and JSON.

CrystalFormer (https://github.com/deepmodeling/CrystalFormer, Apache-2.0) stores its weights as a
pickle of Haiku parameters, which :mod:`nucleate.policies.haiku_pickle` reads without running any
of it.

The checkpoints hold no hyper-parameters. Most follow from the shapes of the arrays; the number of
rows, the width of the attention keys and the number of von Mises components do not, and are Table
S1's unless given.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nucleate.errors import CheckpointError, InputError, RecipeError, StorageError, did_you_mean
from nucleate.policies.checkpoint import FORMULAS, save_policy
from nucleate.policies.haiku_pickle import Parameters, read_parameters
from nucleate.policies.published import (
    LATTICE_NUMBERS,
    N_LETTERS,
    N_SPACE_GROUPS,
    N_SPECIES,
    PublishedConfig,
    PublishedTransformer,
)
from nucleate.policies.published_policy import PublishedPolicy
from nucleate.structures.datasets import TokenDataset
from nucleate.structures.formulas import FormulaIndex

NOT_IN_SHAPES = ("n_max", "key_size", "coordinate_components", "dropout", "attention_dropout")
SOURCE = "CrystalFormer, https://github.com/deepmodeling/CrystalFormer"
LICENCE = "Apache-2.0"
CITATION = "Z. Cao, X. Luo, J. Lv, L. Wang, arXiv:2403.15734; Z. Cao, L. Wang, arXiv:2504.02367"


def import_crystalformer(
    checkpoint: Path | str,
    out_dir: Path | str,
    data: Path | str | None = None,
    /,
    **overrides: float,
) -> PublishedTransformer:
    """Convert a checkpoint of CrystalFormer to a folder with weights and configuration.

    Args:
        checkpoint: ``epoch_*.pkl`` of CrystalFormer 0.4.1 or later.
        out_dir: folder to make; it must not exist, or be empty.
        data: prepared crystals that the model was trained on, see
            :mod:`nucleate.structures.preparation`. Their formulas and space groups, without which
            the model can't be tuned, are written beside the weights.
        **overrides: hyper-parameters of :class:`PublishedConfig`, for a model that isn't that of
            Table S1.

    Returns:
        The network with the checkpoint's weights, as written.

    Raises:
        CheckpointError: the file is truncated, names a forbidden function, or holds other arrays
            than the network's.
        InputError: the file or the data can't be read, or the folder is in use.
        RecipeError: an override is unknown or contradicts the arrays.
    """
    checkpoint, out_dir = Path(checkpoint), Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError(f"{out_dir} exists.", "An import doesn't overwrite.", "Name a new folder.")
    learnt_from = None if data is None else _opened(data)
    try:
        content = checkpoint.read_bytes()
    except OSError as error:
        raise InputError(
            f"{checkpoint} can't be read.", str(error.strerror), "Check the path."
        ) from error
    parameters = read_parameters(content, checkpoint)
    config = infer_config(parameters, checkpoint, **overrides)
    network = PublishedTransformer(config)
    load_parameters(network, parameters, checkpoint)
    metadata: dict[str, Any] = {
        "lattice_parameters": "lengths and angles",
        "assumed": [name for name in NOT_IN_SHAPES if name not in overrides],
        "source": {
            "name": SOURCE,
            "file": checkpoint.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "licence": LICENCE,
            "citation": CITATION,
        },
    }
    formulas = None
    if learnt_from is not None:
        metadata |= learnt_from.card()
        formulas = FormulaIndex(np.asarray(learnt_from.columns["formula_key"]))
    _write(out_dir, network, metadata, formulas)
    return network


def _opened(data: Path | str) -> TokenDataset:
    """The crystals that a model is said to come from."""
    crystals = TokenDataset.open(data)
    if not len(crystals):
        raise InputError(f"{data} holds no crystal.", fix="Name the data that were trained on.")
    return crystals


def infer_config(parameters: Parameters, path: Path, **overrides: float) -> PublishedConfig:
    """The architecture that the shapes of the arrays tell; ``path`` is for messages."""
    known = {field.name for field in fields(PublishedConfig)}
    for name in overrides:
        if name not in known:
            raise RecipeError(
                f"The published network has no hyper-parameter {name!r}.",
                fix=did_you_mean(name, known),
            )
    names = _Names(parameters, path)
    layers = sum(1 for module in parameters if module.endswith("/query"))
    output = names.shape(names.output(layers), "b")[0]
    attention, width = names.shape("multi_head_attention/query", "w")[::-1]
    embedding = names.shape("~", "g_embeddings")[1]
    inferred = {
        "layers": layers,
        "width": width,
        "embedding": embedding,
        "first_letter_width": names.shape("linear", "w")[1] if names.perceptron else 0,
        "harmonics": (names.shape(names.linear(2), "w")[0] - embedding) // 2,
    }
    if "lattice_components" not in overrides:
        inferred["lattice_components"] = _lattice_components(output, path)
    key_size = int(overrides.get("key_size", PublishedConfig.key_size))
    heads = overrides.get("heads")
    if heads and "key_size" not in overrides and attention % int(heads) == 0:
        overrides["key_size"] = key_size = attention // int(heads)
    if attention % key_size:
        raise RecipeError(
            f"{path}: {attention} attention channels don't divide into heads of {key_size}.",
            "A checkpoint doesn't say how many heads it has.",
            f"Give --set key_size=..., a divisor of {attention} (its flag --key_size).",
        )
    inferred["heads"] = attention // key_size
    for name, value in inferred.items():
        if overrides.get(name, value) != value:
            raise RecipeError(
                f"{name} = {overrides[name]} contradicts {path}.",
                f"The shapes of its arrays say {value}.",
                f"Leave out {name}.",
            )
    config = PublishedConfig(**{**inferred, **overrides})  # type: ignore[arg-type]
    if config.output_width != output:
        raise RecipeError(
            f"{path}: an output row has {output} numbers, not {config.output_width}.",
            "The number of von Mises components is not that of Table S1.",
            "Give --set coordinate_components=... and --set lattice_components=... (its flags --Kx "
            "and --Kl).",
        )
    return config


def _lattice_components(output: int, path: Path) -> int:
    components, rest = divmod(output - N_SPECIES, 1 + 2 * LATTICE_NUMBERS)
    if rest or components < 1:
        raise RecipeError(
            f"{path}: an output row of {output} numbers doesn't tell the lattice components.",
            f"It isn't {N_SPECIES} species and 13 numbers for each component.",
            "Give --set lattice_components=... and --set coordinate_components=... (its flags --Kl "
            "and --Kx).",
        )
    return components


@dataclass(frozen=True)
class _Names:
    """Haiku's names of the modules, which count on from one another."""

    parameters: Parameters
    path: Path

    @property
    def perceptron(self) -> bool:
        """Whether a perceptron, not a table, gives the first letter."""
        return self.table is None

    @property
    def table(self) -> str | None:
        """Name of the table of first letters."""
        for name, array in self.parameters.get("~", {}).items():
            if array.shape == (N_SPACE_GROUPS, N_LETTERS) and name != "g_embeddings":
                return name
        return None

    def linear(self, index: int) -> str:
        """Module of the input map of token ``index``, or of what follows them (5, 6, ...)."""
        return _numbered("linear", index + (2 if self.perceptron else 0))

    def output(self, layers: int) -> str:
        """Module of the output layer."""
        return self.linear(5 + 2 * layers)

    def array(self, module: str, name: str) -> np.ndarray:
        """One array of the checkpoint."""
        try:
            return self.parameters[module][name]
        except KeyError as error:
            raise CheckpointError(
                f"{self.path} lacks the array {module}/{name}.",
                "It isn't a checkpoint of CrystalFormer 0.4.1 or later.",
                "Older versions have another network: name a newer checkpoint.",
            ) from error

    def shape(self, module: str, name: str) -> tuple[int, ...]:
        """Shape of one array, padded to two axes for a matrix that is none."""
        array = self.array(module, name)
        wanted = 1 if name == "b" else 2
        if array.ndim != wanted:
            raise CheckpointError(
                f"{self.path}: {module}/{name} has {array.ndim} axes, not {wanted}."
            )
        return array.shape


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def load_parameters(
    network: PublishedTransformer, parameters: Parameters, path: Path | str = "parameters"
) -> None:
    """Fill a network with Haiku parameters; ``path`` is for messages."""
    state = state_dict(network.config, parameters, Path(path))
    own = network.state_dict()
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, "
                f"the network {tuple(own[name].shape)}.",
                "The hyper-parameters aren't those it was trained with.",
                "Give the flags of its training.",
            )
    network.load_state_dict(state)


def state_dict(
    config: PublishedConfig, parameters: Parameters, path: Path
) -> dict[str, torch.Tensor]:
    """Haiku parameters, or their gradients, under the names of :class:`PublishedTransformer`.

    Haiku stores weights as (in, out), torch as (out, in).
    """
    names = _Names(parameters, path)
    state: dict[str, np.ndarray] = {
        "space_group_embedding.weight": names.array("~", "g_embeddings"),
        "letter_embedding.weight": names.array("~", "w_embeddings"),
        "species_embedding.weight": names.array("~", "a_embeddings"),
    }

    def affine(ours: str, *modules: str) -> None:
        state[f"{ours}.weight"] = np.concatenate([names.array(module, "w").T for module in modules])
        state[f"{ours}.bias"] = np.concatenate([names.array(module, "b") for module in modules])

    def norm(ours: str, index: int) -> None:
        module = _numbered("layer_norm", index)
        state[f"{ours}.weight"] = names.array(module, "scale")
        state[f"{ours}.bias"] = names.array(module, "offset")

    if names.table is None:
        affine("first_letter.0", "linear")
        affine("first_letter.2", "linear_1")
    else:
        state["first_letter.weight"] = names.array("~", names.table)
    for token in range(5):
        affine(f"token_inputs.{token}", names.linear(token))
    for layer in range(config.layers):
        block, attention = f"blocks.{layer}", _numbered("multi_head_attention", layer)
        norm(f"{block}.attention_norm", 2 * layer)
        projections = (f"{attention}/{name}" for name in ("query", "key", "value"))
        affine(f"{block}.query_key_value", *projections)
        affine(f"{block}.attention_output", f"{attention}/linear")
        norm(f"{block}.feed_forward_norm", 2 * layer + 1)
        affine(f"{block}.feed_forward.0", names.linear(5 + 2 * layer))
        affine(f"{block}.feed_forward.2", names.linear(6 + 2 * layer))
    norm("output_norm", 2 * config.layers)
    affine("output", names.output(config.layers))
    return {name: torch.tensor(array) for name, array in state.items()}


def _write(
    out_dir: Path,
    network: PublishedTransformer,
    metadata: dict[str, Any],
    formulas: FormulaIndex | None,
) -> None:
    """Write the folder beside its place and move it there, so that it is whole or absent."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
        try:
            folder = workplace / out_dir.name
            policy = PublishedPolicy(network, metadata)  # type: ignore[arg-type]
            save_policy(policy, folder)
            if formulas is not None:
                formulas.save(folder / FORMULAS)
            folder.replace(out_dir)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    except (OSError, StorageError) as error:
        raise StorageError(
            f"{out_dir} can't be written.",
            error.why if isinstance(error, StorageError) else f"{error.strerror}.",
            "Free some space, or name a folder that you may write to.",
        ) from error
