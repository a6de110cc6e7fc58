"""Pretraining as one call: settings, data, processes, checkpoints, and the card of the model.

The mathematics is :mod:`nucleate.policies.pretraining`; here is what surrounds it. Under
``torchrun`` each process calls :func:`pretrain` alike and takes its share of every batch::

    torchrun --nproc-per-node 2 --no-python nucleate pretrain train/ validation/ model/
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nucleate.config import Settings, load_settings, option, read_text
from nucleate.errors import CheckpointError, InputError, RecipeError, did_you_mean
from nucleate.models import model_folder
from nucleate.policies.checkpoint import FORMULAS, build_policy, load_policy
from nucleate.policies.pretraining import Pretraining, PretrainingConfig
from nucleate.policies.published import PublishedConfig
from nucleate.policies.published_policy import PublishedPolicy
from nucleate.policies.site_transformer import SiteTransformerConfig
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.structures.datasets import TokenDataset
from nucleate.structures.formulas import FormulaIndex

CHECKPOINT = "checkpoint.safetensors"
BEST, LAST = "best", "last"
_DEFAULT = PretrainingConfig()
_PACKAGES = ("nucleate", "torch", "numpy", "moyopy", "pymatgen")


class PretrainingSettings(Settings):
    """Settings of a training run, as a YAML file holds them."""

    epochs: float = option(_DEFAULT.epochs, "passes over the training crystals", gt=0)
    batch_size: int = option(
        _DEFAULT.batch_size, "crystals in one step, over all processes", "crystals", ge=1
    )
    learning_rate: float = option(_DEFAULT.learning_rate, "at the end of the warm-up", gt=0, le=1)
    final_learning_rate: float = option(
        _DEFAULT.final_learning_rate, "fraction of it at the end of the cosine", ge=0, le=1
    )
    warmup_steps: int = option(_DEFAULT.warmup_steps, "linear warm-up", "steps", ge=1)
    weight_decay: float = option(_DEFAULT.weight_decay, "AdamW, matrices only", ge=0)
    clip: float = option(_DEFAULT.clip, "largest norm of the gradient of each weight", gt=0)
    ema: float = option(_DEFAULT.ema, "decay of the average of the weights, per step", ge=0, lt=1)
    coordinate_noise: float = option(
        _DEFAULT.coordinate_noise, "standard deviation of noise on coordinates", "cell edge", ge=0
    )
    lattice_noise: float = option(
        _DEFAULT.lattice_noise, "standard deviation of noise on lattice parameters", ge=0
    )
    setting: Literal["canonical", "random"] = option(
        "canonical",
        "show a crystal in one of its equivalent descriptions, or in one drawn anew each time",
    )
    precision: Literal["float32", "bfloat16"] = option(
        "float32", "of the forward pass; bfloat16 is mixed"
    )
    validate_every: int = option(
        _DEFAULT.validate_every, "between validations and checkpoints", "steps", ge=1
    )
    seed: int = option(_DEFAULT.seed, "of everything random", ge=0, lt=2**31)
    network: dict[str, int | float] = option(
        dict, "sizes of the network that differ from its defaults, such as {layers: 4}"
    )

    def config(self) -> PretrainingConfig:
        """What the training itself takes."""
        return PretrainingConfig(**{f.name: getattr(self, f.name) for f in fields(_DEFAULT)})


def load_pretraining_settings(
    path: str | Path | None = None, overrides: Sequence[str] = ()
) -> PretrainingSettings:
    """Read settings from a YAML file, or the defaults, with overrides such as ``epochs=2``.

    Raises:
        RecipeError: an unknown key or a value out of range.
        InputError: no such file.
    """
    text = "" if path is None else read_text(Path(path))
    source = "pretraining settings" if path is None else str(path)
    return load_settings(PretrainingSettings, text, source, overrides)


def pretrain(
    train: str | Path,
    validation: str | Path,
    out: str | Path,
    *,
    settings: PretrainingSettings | None = None,
    network: Literal["site", "published"] = "site",
    init: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    command: Sequence[str] | None = None,
    on_start: Callable[[Pretraining], None] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Path:
    """Train a model by maximum likelihood.

    Args:
        train: prepared crystals, see :mod:`nucleate.structures.preparation`.
        validation: the same, of other formulas; the average weights that fit them best are kept.
        out: folder for ``best``, ``last``, ``train.jsonl`` and the checkpoint.
        settings: of the training.
        network: which network.
        init: model whose weights to start from, and whose network to use.
        resume: go on from the checkpoint in ``out``.
        device: such as "cuda"; the GPU where there is one by default.
        command: what to write on the card; this process's own by default.
        on_start: called once, before the first step, in the first process.
        on_step: called with the metrics of each step, in the first process.

    Returns:
        Folder of the best model.

    Raises:
        InputError: the data can't be read, or ``out`` holds a training already.
        CheckpointError: nothing to resume, or the checkpoint is truncated.
        RecipeError: an unknown size of the network or device, or a batch that the crystals don't
            fill or the processes can't share equally.
        NucleateError: the training diverged.
    """
    settings, out = settings or PretrainingSettings(), Path(out)
    data, held_out = TokenDataset.open(train), TokenDataset.open(validation)
    _check(settings, data, out, resume)
    with _processes(device) as (chosen, rank):
        torch.manual_seed(settings.seed)
        policy = _policy(network, settings, init)
        _check_sites(policy, (data, held_out))
        policy.metadata = _card(settings, data, held_out, command)
        policy.network.to(torch.device(chosen))
        training = Pretraining(policy, data, held_out, out, settings.config())
        if resume:
            training.resume()
        if on_start is not None and rank == 0:
            on_start(training)
        training.run(on_step)
        if rank == 0:
            known = FormulaIndex(np.asarray(data.columns["formula_key"]))
            for name in (BEST, LAST):
                known.save(out / name / FORMULAS)
    return out / BEST


def _check(settings: PretrainingSettings, data: TokenDataset, out: Path, resume: bool) -> None:
    if settings.batch_size > len(data):
        raise RecipeError(
            f"batch_size ({settings.batch_size}) is more than the {len(data)} crystals of "
            f"{data.path}.",
            fix=f"Set batch_size to at most {len(data)}.",
        )
    world = _world()
    if settings.batch_size % world:
        nearest = max(1, settings.batch_size // world) * world
        raise RecipeError(
            f"batch_size ({settings.batch_size}) can't be shared equally by {world} processes.",
            "It counts the crystals of all of them.",
            f"Set batch_size to a multiple of {world}, such as {nearest}.",
        )
    there = (out / CHECKPOINT).is_file()
    if there and not resume:
        raise InputError(
            f"{out} holds a training already.",
            f"It has a {CHECKPOINT}.",
            "Go on with it by --resume, or name another folder.",
        )
    if resume and not there:
        raise CheckpointError(
            f"{out} holds no training to go on with.",
            f"It has no {CHECKPOINT}; one is written at each validation.",
            "Leave --resume out to begin.",
        )


def _policy(network: str, settings: PretrainingSettings, init: str | Path | None) -> WyckoffPolicy:
    """A new policy, or one with the weights of another model."""
    if init is not None:
        if settings.network:
            raise RecipeError(
                "Sizes of the network can't be set together with a model to start from.",
                "The network is that of the model.",
                "Leave out 'network' or --init.",
            )
        policy = load_policy(model_folder(init))
        if isinstance(policy, PublishedPolicy) and policy.lengths_and_angles:
            raise RecipeError(
                f"Training can't start from {init}, an imported model.",
                "Its lattices are drawn as lengths and angles, those of a training otherwise.",
                "Start from a model that was trained here, or leave out --init.",
            )
        return policy
    kind = PublishedConfig if network == "published" else SiteTransformerConfig
    known = {field.name for field in fields(kind)}
    for name in settings.network:
        if name not in known:
            raise RecipeError(
                f"The network {network!r} has no size {name!r}.", fix=did_you_mean(name, known)
            )
    config = kind(**settings.network)  # type: ignore[arg-type]
    return build_policy({"network": config.network, "config": config.to_dict(), "metadata": {}})


def _check_sites(policy: WyckoffPolicy, datasets: Sequence[TokenDataset]) -> None:
    """Refuse crystals that the network can't hold: their likelihood would be zero."""
    most = policy.network.config.max_sites
    for data in datasets:
        longest = int(data.n_sites.max(initial=0))
        if longest > most:
            raise RecipeError(
                f"{data.path} has crystals of {longest} sites, the network takes {most}.",
                fix=f"Prepare the data with --max-sites {most}, or set the network's size.",
            )


def _card(
    settings: PretrainingSettings,
    data: TokenDataset,
    held_out: TokenDataset,
    command: Sequence[str] | None,
) -> dict[str, Any]:
    """What a model says of its origin."""
    return {
        **data.card(),
        "validation": held_out.path.name,
        "validation_sha256": held_out.digest,
        "validation_labels": held_out.label_card(),
        "settings": settings.model_dump(mode="json"),
        "command": list(sys.argv if command is None else command),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _processes(device: str | None) -> Iterator[tuple[str, int]]:
    """Device and rank of this process; joins the others that ``torchrun`` has started."""
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    chosen = _device(device)
    if _world() == 1:
        yield chosen, 0
        return
    if chosen.startswith("cuda"):
        if local >= torch.cuda.device_count():
            raise RecipeError(
                f"process {local} of this machine has no GPU of its own.",
                f"torch sees {torch.cuda.device_count()}.",
                "Start as many processes as there are GPUs (--nproc-per-node), or use "
                "--device cpu.",
            )
        chosen = f"cuda:{local}"
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if chosen.startswith("cuda") else "gloo")
    try:
        yield chosen, rank
    finally:
        torch.distributed.destroy_process_group()


def _world() -> int:
    """Processes that ``torchrun`` has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _device(name: str | None) -> str:
    """The device asked for, or the GPU where there is one.

    Raises:
        RecipeError: another kind of device than cpu and cuda, or a GPU that is not there.
    """
    n_gpus = torch.cuda.device_count()
    if name in (None, "auto"):
        return "cuda" if n_gpus else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if known is None:
        raise RecipeError(
            f"Training doesn't know the device {name!r}.", fix="Use auto, cpu, cuda or cuda:1."
        )
    if name != "cpu" and int(known[1] or 0) >= n_gpus:
        raise RecipeError(
            f"The device {name!r} is not there.",
            f"torch sees {n_gpus} CUDA devices.",
            "Use --device cpu, or look at CUDA_VISIBLE_DEVICES and at how torch was installed.",
        )
    return name
