"""Pretraining as one call: what it refuses before it begins, and what the model says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from nucleate.errors import RecipeError
from nucleate.policies.checkpoint import load_policy, save_policy
from nucleate.policies.published import PublishedConfig, PublishedTransformer
from nucleate.policies.published_policy import LENGTHS_AND_ANGLES, PublishedPolicy
from nucleate.structures.datasets import TokenDataset
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.labels import LabelTable
from nucleate.structures.parsing import RawRecord, to_cell
from nucleate.structures.preparation import prepare, sha256_of
from nucleate.training import PretrainingSettings, pretrain
from tiny import tiny_policy

SETTINGS = PretrainingSettings(
    network={"width": 32, "heads": 2, "embedding": 16, "max_sites": 3},
    batch_size=4,
    epochs=2,
    validate_every=2,
    warmup_steps=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``validation`` of perovskites, ``long`` with crystals of four sites."""
    folder = tmp_path_factory.mktemp("data")
    corner, centre, face = [0, 0, 0], [0.5] * 3, [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    perovskites, others = [], []
    for i, a in enumerate(np.linspace(3.8, 4.4, 8)):
        cubic = Structure(Lattice.cubic(a), ["Ba", "Ti", "O", "O", "O"], [corner, centre, *face])
        label = {"e_hull": 0.01 * i} if i < 5 else {}
        perovskites.append(RawRecord("cell", to_cell(cubic), f"p{i}", {"id": f"p{i}", **label}))
        low = Structure(
            Lattice.from_parameters(a, a + 1, a + 2, 80, 85, 95),
            ["Li", "K", "Cl", "F"],
            [corner, [0.5, 0.1, 0], [0, 0.5, 0.5], [0.6, 0.5, 0.5]],
        )
        others.append(RawRecord("cell", to_cell(low), f"o{i}"))
    (folder / "scores.csv").write_text("id,e_above_hull\np0,9\np6,0.2\n")
    table = LabelTable.read(folder / "scores.csv")
    prepare(perovskites, folder / "train", labels=table)
    prepare(perovskites[:4], folder / "validation")
    prepare(others, folder / "long")
    return folder


def test_the_card_says_where_the_model_comes_from(data: Path, tmp_path: Path) -> None:
    best = pretrain(
        data / "train",
        data / "validation",
        tmp_path / "out",
        settings=SETTINGS,
        device="cpu",
        command=["nucleate", "pretrain"],
    )
    assert best == tmp_path / "out" / "best"
    for folder in (best, tmp_path / "out" / "last"):
        card = load_policy(folder).metadata
        assert card["space_groups"] == {"221": 8}
        assert card["data_crystals"] == 8
        assert card["data_sha256"] == TokenDataset.open(data / "train").digest
        assert card["validation_sha256"] == TokenDataset.open(data / "validation").digest
        assert card["data_labels"]["counts"]["e_hull"] == {"source": 5, "table": 1, "unknown": 2}
        table = card["data_labels"]["table"]
        assert table["sha256"] == sha256_of(data / "scores.csv")
        assert table["columns"] == {"e_hull": "e_above_hull"}
        assert card["validation_labels"]["table"] is None
        assert card["settings"] == SETTINGS.model_dump(mode="json")
        assert card["command"] == ["nucleate", "pretrain"]
        assert card["versions"]["torch"] == torch.__version__
        keys = TokenDataset.open(data / "train").columns["formula_key"]
        assert FormulaIndex.load(folder / "formulas.npy").contains(keys).all()
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    ]
    assert [(row["step"], row["skipped_steps"]) for row in rows] == [(2, 0), (4, 0)]


@pytest.mark.parametrize(
    ("options", "world", "words"),
    [
        ({"settings": SETTINGS.model_copy(update={"batch_size": 9})}, 1, ["batch_size (9)", "8"]),
        ({}, 3, ["batch_size (4)", "3 processes", "multiple of 3, such as 3"]),
        ({"settings": SETTINGS.model_copy(update={"batch_size": 2})}, 3, ["such as 3"]),
        ({"settings": SETTINGS.model_copy(update={"network": {"widht": 3}})}, 1, ["'width'"]),
        ({"train": "long"}, 1, ["long", "4 sites", "takes 3"]),
        ({"validation": "long"}, 1, ["long", "4 sites", "takes 3"]),
        ({"device": "mps"}, 1, ["'mps'", "cuda:1"]),
        ({"device": "gpu"}, 1, ["'gpu'", "cuda:1"]),
        ({"device": "cuda:99"}, 1, ["'cuda:99'", "--device cpu"]),
    ],
)
def test_what_is_refused_before_it_begins(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    world: int,
    words: list[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    given = {"train": "train", "validation": "validation", "settings": SETTINGS, "device": "cpu"}
    given |= options
    train, validation = data / given.pop("train"), data / given.pop("validation")
    with pytest.raises(RecipeError) as error:
        pretrain(train, validation, tmp_path / "out", **given)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_to_start_from(data: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"network": {}})
    save_policy(tiny_policy(), tmp_path / "tiny")
    crystals = (data / "train", data / "validation")
    best = pretrain(
        *crystals, tmp_path / "a", settings=settings, init=tmp_path / "tiny", device="cpu"
    )
    assert load_policy(best).network.config == tiny_policy().network.config
    sizes = PublishedConfig(layers=1, heads=1, key_size=4, width=8)
    metadata = {"lattice_parameters": LENGTHS_AND_ANGLES}
    save_policy(PublishedPolicy(PublishedTransformer(sizes), metadata), tmp_path / "imported")
    with pytest.raises(RecipeError, match="imported model"):
        pretrain(
            *crystals, tmp_path / "b", settings=settings, init=tmp_path / "imported", device="cpu"
        )
