"""ASE calculators of published potentials, made in whichever interpreter has their packages.

Like :mod:`nucleate.worker`, this file needs nothing of nucleate: it may be run in another
interpreter. Each function imports its package when it is called.

    model      the package's own name of the model
    weights    a local file or folder to read instead of downloading
    device     torch device
    arguments  further keyword arguments of the package's calculator
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def mace(model: str | None, weights: str | None, device: str, **arguments: Any) -> Any:
    """MACE-MP and its successors; arguments such as ``default_dtype="float64"``."""
    from mace.calculators import mace_mp

    return mace_mp(model=weights or model, device=device, **arguments)


def sevennet(model: str | None, weights: str | None, device: str, **arguments: Any) -> Any:
    """SevenNet; models of several data sets need the argument ``modal``."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(weights or model, device=device, **arguments)


def mattersim(model: str | None, weights: str | None, device: str, **arguments: Any) -> Any:
    """MatterSim."""
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator(load_path=weights or f"{model}.pth", device=device, **arguments)


def orb(model: str | None, weights: str | None, device: str, **arguments: Any) -> Any:
    """Orb; the model names the architecture also where local weights are read."""
    from orb_models.forcefield import pretrained

    known = pretrained.ORB_PRETRAINED_MODELS
    if model not in known:
        raise ValueError(f"orb-models knows no model {model!r}; it has {', '.join(sorted(known))}")
    options = {"device": device, "compile": False}
    if weights:
        options["weights_path"] = weights
    made = known[model](**options)
    network, *adapter = made if isinstance(made, tuple) else (made,)
    if adapter:
        from orb_models.forcefield.inference.calculator import ORBCalculator
    else:  # before version 0.6
        from orb_models.forcefield.calculator import ORBCalculator
    return ORBCalculator(network, *adapter, device=device, **arguments)


def matgl(model: str | None, weights: str | None, device: str, **arguments: Any) -> Any:
    """Potentials of matgl: TensorNet, M3GNet, CHGNet, QET."""
    if device != "cpu":
        raise ValueError("matgl's calculator builds its graphs on the CPU; leave device out")
    from matgl import load_model
    from matgl.ext.ase import PESCalculator

    return PESCalculator(
        load_model(weights or model), stress_unit="eV/A3", use_voigt=True, **arguments
    )
