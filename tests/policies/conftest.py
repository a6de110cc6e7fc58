"""Reference numbers of the published network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from nucleate.policies.importers import infer_config, load_parameters
from nucleate.policies.published import PublishedTransformer


@dataclass(frozen=True)
class Reference:
    """Weights, inputs and outputs of one model of the original code, all in float32."""

    arrays: dict[str, np.ndarray]
    parameters: dict[str, dict[str, np.ndarray]]
    gradients: dict[str, dict[str, np.ndarray]]
    overrides: dict[str, int]

    def network(self, dtype: torch.dtype) -> PublishedTransformer:
        """The network with the reference's weights."""
        config = infer_config(self.parameters, Path("reference"), **self.overrides)
        network = PublishedTransformer(config)
        load_parameters(network, self.parameters)
        return network.to(dtype).eval()

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Space groups, letters, species, coordinates."""
        return tuple(torch.from_numpy(self.arrays[name]) for name in ("G", "W", "A", "XYZ"))

    def log_prob(self) -> dict[str, np.ndarray]:
        """The four parts of the log-probability."""
        names = {"wyckoff": "w", "coordinates": "xyz", "species": "a", "lattice": "l"}
        return {part: self.arrays[f"logp_{name}"] for part, name in names.items()}


def read_reference(path: Path) -> Reference:
    """Split a fixture file into its kinds of arrays."""
    arrays: dict[str, np.ndarray] = {}
    parameters: dict[str, dict[str, np.ndarray]] = {}
    gradients: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in stored.files:
            module, _, array = name.partition("|")
            if not array:
                arrays[name] = stored[name]
            elif module.startswith("grad:"):
                gradients.setdefault(module[5:], {})[array] = stored[name]
            else:
                parameters.setdefault(module, {})[array] = stored[name]
    hp = json.loads(str(arrays["hp"]))
    overrides = {
        "n_max": hp["n_max"],
        "key_size": hp["key_size"],
        "coordinate_components": hp["Kx"],
    }
    return Reference(arrays, parameters, gradients, overrides)


@pytest.fixture(scope="session")
def small(shared: Path) -> Reference:
    """Two layers, eight rows, 24 crystals, with gradients of the loss."""
    return read_reference(shared / "fixtures/crystalformer/small.npz")


@pytest.fixture(scope="session")
def table_s1(shared: Path) -> Reference:
    """The network of Table S1 with random weights, eight crystals."""
    return read_reference(shared / "fixtures/crystalformer/tableS1.npz")
