"""Conversion of published checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from safetensors import SafetensorError
from safetensors.torch import load_file

from nucleate.design import training_formulas
from nucleate.errors import CheckpointError, InputError, RecipeError, StorageError
from nucleate.policies import checkpoint, importers
from nucleate.policies.checkpoint import CARD, WEIGHTS, load_policy
from nucleate.policies.compatible import token_log_prob
from nucleate.policies.importers import import_crystalformer, infer_config
from nucleate.policies.published import PublishedConfig, PublishedTransformer
from nucleate.structures.parsing import RawRecord, to_cell
from nucleate.structures.preparation import prepare

if TYPE_CHECKING:
    from conftest import Reference

SITES = [[0.0] * 3, [0.5] * 3]
SMALL = {"n_max": 8, "key_size": 8, "coordinate_components": 4}


@pytest.fixture
def pickled(shared: Path) -> Path:
    """A small checkpoint in the published format."""
    return shared / "fixtures/crystalformer/small_epoch_000001.pkl"


def test_imported_folder_gives_the_original_log_probability(
    pickled: Path, small: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "imported"
    import_crystalformer(pickled, folder, **SMALL)
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]
    assert [path.name for path in folder.parent.iterdir()] == ["imported"]
    card = json.loads((folder / CARD).read_text())
    network = PublishedTransformer(PublishedConfig(**card["config"]))
    network.load_state_dict(load_file(folder / WEIGHTS))
    network.eval()
    with torch.no_grad():
        lattice = torch.from_numpy(small.arrays["L"])
        parts = token_log_prob(network, *small.inputs(), lattice)
    for part, wanted in small.log_prob().items():
        np.testing.assert_allclose(parts[part], wanted, rtol=0, atol=2e-5)


def test_with_its_data_a_checkpoint_can_be_tuned(pickled: Path, tmp_path: Path) -> None:
    import_crystalformer(pickled, tmp_path / "alone", **SMALL)
    with pytest.raises(CheckpointError, match="--data"):
        training_formulas(load_policy(tmp_path / "alone"), tmp_path / "alone")
    salts = [to_cell(Structure(Lattice.cubic(4.1), ["Cs", x], SITES)) for x in ("Cl", "Br", "Cl")]
    prepare([RawRecord("cell", cell, f"{i}") for i, cell in enumerate(salts)], tmp_path / "data")
    import_crystalformer(pickled, tmp_path / "whole", tmp_path / "data", **SMALL)
    policy = load_policy(tmp_path / "whole")
    known = training_formulas(policy, tmp_path / "whole")
    assert known.source == "formulas of data" and len(known) == 2
    found = [Structure(Lattice.cubic(3.0), ["Br", "Cs"], SITES), None]
    assert known.known_formula(found).tolist() == [True, False]
    assert policy.training_space_groups()[221] == 1
    assert policy.metadata["data_crystals"] == 3 and policy.metadata["source"]
    with pytest.raises(InputError, match="prepared"):
        import_crystalformer(pickled, tmp_path / "none", tmp_path / "whole", **SMALL)
    assert not (tmp_path / "none").exists()


def test_card_names_source_licence_and_what_was_assumed(pickled: Path, tmp_path: Path) -> None:
    import_crystalformer(pickled, tmp_path / "imported", **SMALL)
    card = json.loads((tmp_path / "imported" / CARD).read_text())
    source = card["metadata"]["source"]
    assert source["sha256"] == hashlib.sha256(pickled.read_bytes()).hexdigest()
    assert source["licence"] == "Apache-2.0"
    assert card["network"] == "published"
    assert card["metadata"]["lattice_parameters"] == "lengths and angles"
    assert card["metadata"]["assumed"] == ["dropout", "attention_dropout"]
    weights = (tmp_path / "imported" / WEIGHTS).read_bytes()
    assert card["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_table_s1_is_inferred_from_shapes(table_s1: Reference) -> None:
    assert infer_config(table_s1.parameters, Path("checkpoint")) == PublishedConfig()


def test_heads_tell_the_key_size(small: Reference) -> None:
    config = infer_config(small.parameters, Path("x"), n_max=8, heads=3, coordinate_components=4)
    assert (config.heads, config.key_size) == (3, 8)


def test_a_table_of_first_letters_is_recognised(small: Reference) -> None:
    numbered = {}
    for module, arrays in small.parameters.items():
        name, _, index = module.partition("_")
        if name == "linear":
            if index in ("", "1"):
                continue
            module = f"linear_{int(index) - 2}" if int(index) > 2 else "linear"
        numbered[module] = arrays
    table = np.random.default_rng(0).normal(size=(230, 28)).astype(np.float32)
    numbered["~"] = {**small.parameters["~"], "h0": table}
    config = infer_config(numbered, Path("x"), **SMALL)
    assert config.first_letter_width == 0
    network = PublishedTransformer(config)
    importers.load_parameters(network, numbered)
    logits = network.first_letter_logits(torch.tensor([1, 230]))
    np.testing.assert_array_equal(logits.detach(), table[[0, 229]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "key_size"),
        ({"key_size": 8, "coordinate_components": 60}, "158 numbers, not 180"),
        ({**SMALL, "key_size": 7}, "don't divide"),
        ({**SMALL, "layers": 3}, "contradicts"),
        ({**SMALL, "kye_size": 8}, "Did you mean 'key_size'"),
    ],
)
def test_what_shapes_leave_open_is_asked_for(
    pickled: Path, tmp_path: Path, overrides: dict[str, int], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        import_crystalformer(pickled, tmp_path / "imported", **overrides)
    assert not any(tmp_path.iterdir())


def test_a_module_that_is_missing_is_named(small: Reference) -> None:
    parameters = {name: a for name, a in small.parameters.items() if name != "linear_9"}
    network = small.network(torch.float32)
    with pytest.raises(CheckpointError, match="linear_9"):
        importers.load_parameters(network, parameters)


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'true'\ntR."])
def test_bad_checkpoints_leave_nothing_behind(tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "epoch_000001.pkl"
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match="epoch_000001"):
        import_crystalformer(checkpoint, tmp_path / "imported")
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_a_truncated_checkpoint_leaves_nothing_behind(pickled: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "epoch_000001.pkl"
    checkpoint.write_bytes(pickled.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="ends too early"):
        import_crystalformer(checkpoint, tmp_path / "imported", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_a_folder_in_use_is_kept(pickled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="overwrite"):
        import_crystalformer(pickled, tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pkl"):
        import_crystalformer(tmp_path / "nowhere.pkl", tmp_path / "imported")


def test_a_write_that_fails_leaves_nothing_behind(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        import_crystalformer(pickled, tmp_path / "imported", **SMALL)
    assert str(tmp_path / "imported") in caught.value.what
    assert not any(tmp_path.iterdir())
