"""Predictors: a network of matgl trained on a table, against heads on frozen CHGNet features.

    V/bin/python benchmarks/predictors.py TABLE --target COLUMN [--seconds 900] [--start FOLDER]

Both learn from the same training crystals, choose their weights by the same validation crystals,
and are judged once by the same test crystals; the parts are those of ``nucleate predictor train``
with the same settings (``--set``). One thread each, processor time, which for both counts reading,
features or graphs, training and validation. The loss of both is the L1 distance of standardised
labels, and of their logarithms with ``--log``.

The heads take the time that their settings ask for. The network gets the same, or ``--seconds``. It
has matgl's default sizes and optimiser (Adam, 1e-3, cosine to a hundredth), with the cosine over
its time after a short rise, and keeps the weights of its best epoch on the validation crystals.
``--start`` is the folder of a published model whose weights all go on learning: that is nearer to
the heads, whose features are pretrained too.

Needs an interpreter with both packages: ``python3 -m venv V``, ``V/bin/pip install torch==2.13.0``
(CPU build), then ``V/bin/pip install matgl==4.1.2 -e .``. The interval is that of the mean
difference of the two absolute errors over resampled test crystals. The ratio at the end is the mean
absolute error of the network divided by that of the heads.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from arguments import existing
from baseline_network import one_thread
from nucleate.config import load_settings
from nucleate.physics.cells import Cell, as_structure
from nucleate.predictors.checkpoint import load_predictor
from nucleate.predictors.predictor import Prediction, Predictor
from nucleate.predictors.tables import LabelledCrystals, Target, read_labelled, split
from nucleate.predictors.training import FRACTIONS, PredictorSettings, train_predictor

NETWORKS = {"megnet": "MEGNet", "tensornet": "TensorNet"}
BATCH = 64  # crystals, as of the heads
LEARNING_RATE, LAST = 1e-3, 0.01
WARM_UP = 0.05  # share of the time
LINES = 8  # of progress
RESAMPLES = 10_000


@dataclass
class Learnt:
    """What came out of the training of a network.

    Attributes:
        epochs: passes over the training crystals, the last perhaps not whole.
        best_epoch: after which the kept weights were found.
        validation: mean absolute error of those, in the target's unit.
        seconds: of processor time.
    """

    epochs: float = 0.0
    best_epoch: int = 0
    validation: float = math.inf
    seconds: float = 0.0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def beginning(kind: str, start: Path | None, seed: int) -> Any:
    """A network of matgl with random weights, or a published MEGNet."""
    import matgl
    from matgl import models

    torch.manual_seed(seed)
    if start is None:
        return getattr(models, NETWORKS[kind])()
    try:
        loaded = matgl.load_model(str(start))
    except Exception as error:
        raise SystemExit(f"{start} holds no model that matgl can read: {error}") from error
    model = getattr(loaded, "model", loaded)
    if not isinstance(model, models.MEGNet):
        raise SystemExit(f"{start} holds a {type(model).__name__}, not a MEGNet")
    return model


class Network:
    """A network of matgl that predicts one number of a crystal.

    Args:
        model: the network.
        target: what is predicted.
        labels: (N,) of the training crystals, which decide the standardisation.
        seed: of the order of crystals.
    """

    def __init__(self, model: Any, target: Target, labels: np.ndarray, seed: int) -> None:
        from matgl.ext.pymatgen import Structure2Graph

        self.model = model
        self.converter = Structure2Graph(model.element_types, model.cutoff)
        self.target, self.generator = target, np.random.default_rng(seed)
        learnt = self._scaled(labels)
        self.mean, self.scale = float(learnt.mean()), float(learnt.std())

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def graphs(self, cells: Sequence[Cell]) -> list[Any]:
        """A graph of each crystal, None where the network doesn't know an element."""
        from torch_geometric.data import Data

        known, found = set(self.model.element_types), []
        for structure in map(as_structure, cells):
            if not known >= set(structure.symbol_set):
                found.append(None)
                continue
            graph, lattice, _ = self.converter.get_graph(structure)
            found.append(
                Data(
                    num_nodes=len(structure),
                    edge_index=graph.edge_index,
                    node_type=graph.node_type,
                    pos=graph.frac_coords @ lattice[0],
                    pbc_offshift=graph.pbc_offset @ lattice[0],
                )
            )
        return found

    def predict(self, graphs: Sequence[Any]) -> np.ndarray:
        """(N,) predictions in the target's unit, NaN where there is no graph."""
        out = np.full(len(graphs), np.nan)
        rows = [i for i, graph in enumerate(graphs) if graph is not None]
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                out[some] = self._raw([graphs[i] for i in some]).double().numpy()
        out = out * self.scale + self.mean
        out = np.exp(out) if self.target.scale == "log" else out
        return out if self.target.minimum is None else np.maximum(out, self.target.minimum)

    def train(
        self, training: LabelledCrystals, validation: LabelledCrystals, seconds: float, start: float
    ) -> Learnt:
        """Learn until ``seconds`` of processor time have gone by since ``start``."""
        graphs, judged = self.graphs(training.cells), self.graphs(validation.cells)
        rows = np.array([i for i, graph in enumerate(graphs) if graph is not None])
        wanted = torch.from_numpy((self._scaled(training.value) - self.mean) / self.scale).float()
        optimiser = torch.optim.Adam(self.model.parameters(), LEARNING_RATE)
        learnt, began = Learnt(), time.process_time() - start
        marks = list(np.linspace(began, seconds, LINES + 1)[1:])
        print(f"graphs in {began:.0f} s; {len(graphs) - len(rows)} crystals have unknown elements")
        print(f"{'seconds':>9} {'epoch':>7} {'loss':>9} {'validation':>11} {'best so far':>12}")
        epoch = 0
        while time.process_time() - start < seconds:
            self.model.train()
            losses: list[float] = []
            batches = np.array_split(self.generator.permutation(rows), math.ceil(len(rows) / BATCH))
            for batch in batches:
                spent = time.process_time() - start
                if spent >= seconds:
                    break
                share = (spent - began) / max(seconds - began, 1e-9)
                optimiser.param_groups[0]["lr"] = LEARNING_RATE * _rise_and_fall(share)
                loss = (self._raw([graphs[i] for i in batch]) - wanted[batch]).abs().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            if not losses:
                break
            epoch += 1
            learnt.epochs += len(losses) / len(batches)
            error = float(np.nanmean(np.abs(self.predict(judged) - validation.value)))
            if error < learnt.validation:
                learnt.validation, learnt.best_epoch = error, epoch
                learnt.weights = copy.deepcopy(self.model.state_dict())
            learnt.seconds = time.process_time() - start
            if learnt.seconds >= marks[0]:
                marks = [mark for mark in marks if mark > learnt.seconds] or [math.inf]
                print(
                    f"{learnt.seconds:9.0f} {learnt.epochs:7.1f} {np.mean(losses):9.4f} "
                    f"{error:11.4f} {learnt.validation:12.4f}",
                    flush=True,
                )
        if not learnt.weights:
            raise SystemExit(f"{seconds:.0f} s are too few to learn anything; raise --seconds")
        self.model.load_state_dict(learnt.weights)
        return learnt

    def _raw(self, graphs: Sequence[Any]) -> torch.Tensor:
        """(B,) standardised predictions."""
        from torch_geometric.data import Batch

        state = torch.zeros(len(graphs), 2)  # MEGNet's; others don't read it
        return self.model(Batch.from_data_list(list(graphs)), state_attr=state).reshape(-1)

    def _scaled(self, labels: np.ndarray) -> np.ndarray:
        return np.log(labels) if self.target.scale == "log" else labels


def _rise_and_fall(share: float) -> float:
    """The learning rate after a share of the time, in units of the largest."""
    if share < WARM_UP:
        return max(share / WARM_UP, LAST)
    cosine = 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
    return LAST + (1 - LAST) * cosine


def heads_on_features(
    table: str, target: Target, settings: PredictorSettings
) -> tuple[Predictor, float]:
    """The product's predictor, and the processor time that it took."""
    start = time.process_time()
    with TemporaryDirectory() as folder:
        train_predictor(table, Path(folder) / "predictor", target, settings=settings)
        spent = time.process_time() - start
        return load_predictor(Path(folder) / "predictor"), spent


def values(predictions: Sequence[Prediction | Exception]) -> np.ndarray:
    """(N,) predicted values, NaN where there is none."""
    return np.array([p.value if isinstance(p, Prediction) else np.nan for p in predictions])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % of the means of resampled (N,) differences."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def compare(
    predictor: Predictor, network: Network, test: LabelledCrystals, names: tuple[str, str]
) -> None:
    """Print both errors on the test crystals that both can judge."""
    unit = f" {predictor.target.unit}" if predictor.target.unit else ""
    alone = [
        Predictor(
            predictor.target,
            [head],
            predictor.standardisation,
            predictor.element_counts,
            predictor.card,
        )
        for head in predictor.heads
    ]
    ours = values(predictor.predict(test.cells))
    single = [values(one.predict(test.cells)) for one in alone]
    theirs = network.predict(network.graphs(test.cells))
    both = np.isfinite(ours) & np.isfinite(theirs)
    label = test.value[both]
    error = {name: np.abs(x[both] - label) for name, x in zip(names, (ours, theirs), strict=True)}
    print(f"\n{both.sum()} of {len(test)} test crystals are judged by both")
    dummy = np.abs(label - np.median(label)).mean()
    print(f"mean absolute error of the labels' median {dummy:.4f}{unit}")
    for name, own in error.items():
        print(f"{name}: mean absolute error {own.mean():.4f}{unit}, median {np.median(own):.4f}")
    one_head = np.mean([np.abs(x[both] - label).mean() for x in single])
    print(f"a single head, on average: {one_head:.4f}{unit}")
    first, second = error.values()
    low, high = interval(second - first)
    nearer = float((second < first).mean())
    print(
        f"{names[1]} less {names[0]}: {(second - first).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        f"{unit}, 95 % of {RESAMPLES:,} resamples; nearer on {nearer:.0%} of the crystals"
    )
    print(f"load average at the end {os.getloadavg()[0]:.1f}")
    print(f"ratio: {second.mean() / first.mean():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="labelled crystals: file or quoted glob")
    parser.add_argument("--target", action="append", required=True, help="column of labels")
    parser.add_argument("--kind", choices=["scalar", "tensor"], default="scalar")
    parser.add_argument("--low", type=float, help="leave out labels below")
    parser.add_argument("--high", type=float, help="leave out labels above")
    parser.add_argument("--minimum", type=float, help="raise predictions to this")
    parser.add_argument("--log", action="store_true", help="learn the logarithm")
    parser.add_argument("--unit", default="", help="of the labels")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the heads")
    parser.add_argument("--network", choices=NETWORKS, default="megnet", help="of matgl")
    parser.add_argument("--start", type=existing, help="matgl model (MEGNet) to go on from")
    parser.add_argument(
        "--seconds", type=float, help="processor time of the network; by default that of the heads"
    )
    options = parser.parse_args()
    if options.seconds is not None and options.seconds <= 0:
        parser.error("--seconds has to be positive")
    if importlib.util.find_spec("matgl") is None:
        raise SystemExit(
            "matgl is not installed in this interpreter. Make one with both packages: python3 -m "
            "venv V; V/bin/pip install torch==2.13.0; V/bin/pip install matgl==4.1.2 -e ."
        )
    if options.start is not None and options.network != "megnet":
        parser.error("--start goes on from a MEGNet, so that --network has to be megnet")
    target = Target(
        name=options.target[0],
        unit=options.unit,
        kind=options.kind,
        columns=tuple(options.target),
        low=options.low,
        high=options.high,
        minimum=options.minimum,
        scale="log" if options.log else "linear",
    )
    settings = load_settings(PredictorSettings, "", "predictor settings", options.set)
    one_thread()
    model = beginning(options.network, options.start, settings.seed)
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    predictor, spent = heads_on_features(options.table, target, settings)
    weights = sum(parameter.numel() for parameter in predictor.heads[0].parameters())
    print(
        f"heads: {len(predictor.heads)} of {weights:,} weights, {spent:.0f} s, validation "
        f"{predictor.card['metrics']['validation']['mae']:.4f}, crystals "
        f"{predictor.card['crystals']}"
    )
    start, seconds = time.process_time(), options.seconds or spent
    crystals = read_labelled(options.table, target)
    training, validation, test = split(crystals, "formula", FRACTIONS, settings.seed)
    network = Network(model, target, training.value, settings.seed)
    origin = f"from {options.start.name}" if options.start else "from random weights"
    print(f"\n{type(network.model).__name__} {origin}: {network.size:,} weights, {seconds:.0f} s")
    learnt = network.train(training, validation, seconds, start)
    print(
        f"{learnt.epochs:.1f} epochs in {learnt.seconds:.0f} s; kept the weights after epoch "
        f"{learnt.best_epoch}, validation {learnt.validation:.4f}"
    )
    compare(predictor, network, test, ("heads", type(network.model).__name__))


if __name__ == "__main__":
    main()
