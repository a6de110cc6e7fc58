"""Published potentials by name: what each was trained on, and how to make it.

A potential fits a hull only if both sides share level of theory and energy correction. None of
these includes the Materials Project's corrections, because their training energies are raw
(:mod:`.chgnet` is the exception). Where the level is "PBE(+U)", the corrections may be added to
their energies (``correct: true`` of ``e_above_hull``); the newer pseudopotentials of OMat24 and the
functionals of MatPES need a hull of the potential's own: ``nucleate hull build``.

Sources of the levels: Batatia et al., arXiv:2401.00096 (MACE); Park et al., J. Chem. Theory Comput.
20, 4857 (2024) (SevenNet); Yang et al., arXiv:2405.04967 (MatterSim); Rhodes et al.,
arXiv:2504.06231 (Orb); Kaplan et al., arXiv:2503.04070 (MatPES); Chen and Ong, Nat. Comput. Sci. 2,
718 (2022) (M3GNet).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.errors import InputError, MissingDependencyError, RecipeError, did_you_mean
from nucleate.physics import calculators
from nucleate.physics.potentials import make_ase_potential

if TYPE_CHECKING:
    from nucleate.protocols import Potential

MP = "PBE(+U)"
OMAT = "PBE(+U) with the pseudopotentials of OMat24"
PBE = "PBE"
R2SCAN = "r2SCAN"


@dataclass(frozen=True)
class Family:
    """Potentials of one package.

    Attributes:
        package: what to install.
        default: the model that is meant where none is named.
        levels: level of theory by the package's own name of the model.
        included: models whose weights come with the package.
        arguments: keyword arguments that a model's calculator needs.
        needs_model: local weights do not say which model they are for.
    """

    package: str
    default: str
    levels: Mapping[str, str]
    included: tuple[str, ...] = ()
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs_model: bool = False


FAMILIES: Mapping[str, Family] = {
    "mace": Family(
        "mace-torch",
        "medium-mpa-0",
        {
            "small": MP,
            "medium": MP,
            "large": MP,
            "small-0b": MP,
            "medium-0b": MP,
            "small-0b2": MP,
            "medium-0b2": MP,
            "large-0b2": MP,
            "medium-0b3": MP,
            "medium-mpa-0": MP,
            "small-omat-0": OMAT,
            "medium-omat-0": OMAT,
            "mace-matpes-pbe-0": PBE,
            "mace-matpes-r2scan-0": R2SCAN,
        },
    ),
    "sevennet": Family(
        "sevenn",
        "7net-0",
        {
            "7net-0": MP,
            "7net-0_22may2024": MP,
            "7net-l3i5": MP,
            "7net-mf-ompa": MP,
            "7net-omat": OMAT,
        },
        included=("7net-0", "7net-0_22may2024", "7net-l3i5"),
        arguments={"7net-mf-ompa": {"modal": "mpa"}},
    ),
    "mattersim": Family(
        "mattersim", "MatterSim-v1.0.0-1M", {"MatterSim-v1.0.0-1M": MP, "MatterSim-v1.0.0-5M": MP}
    ),
    "orb": Family(
        "orb-models",
        "orb-v3-conservative-inf-mpa",
        {
            "orb-v2": MP,
            "orb-mptraj-only-v2": MP,
            "orb-v3-conservative-20-mpa": MP,
            "orb-v3-conservative-inf-mpa": MP,
            "orb-v3-direct-20-mpa": MP,
            "orb-v3-direct-inf-mpa": MP,
            "orb-v3-conservative-20-omat": OMAT,
            "orb-v3-conservative-inf-omat": OMAT,
            "orb-v3-direct-20-omat": OMAT,
            "orb-v3-direct-inf-omat": OMAT,
        },
        needs_model=True,
    ),
    "matgl": Family(
        "matgl",
        "TensorNet-PES-MatPES-PBE-2025.2",
        {
            "TensorNet-PES-MatPES-PBE-2025.2": PBE,
            "TensorNet-PES-MatPES-r2SCAN-2025.2": R2SCAN,
            "M3GNet-PES-MatPES-PBE-2025.2": PBE,
            "M3GNet-PES-MatPES-r2SCAN-2025.2": R2SCAN,
            "TensorNet-MatPES-PBE-v2025.1-PES": PBE,
            "TensorNet-MatPES-r2SCAN-v2025.1-PES": R2SCAN,
            "M3GNet-MatPES-PBE-v2025.1-PES": PBE,
            "M3GNet-MatPES-r2SCAN-v2025.1-PES": R2SCAN,
            "M3GNet-MP-2021.2.8-PES": MP,
        },
    ),
}


def pretrained(
    family: str,
    model: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    offline: bool = False,
    arguments: Mapping[str, Any] | None = None,
    level_of_theory: str | None = None,
    correction: str | None = None,
    python: str | None = None,
    workers: int | None = None,
    timeout: float | None = None,
) -> Potential:
    """A published potential, here or in another interpreter.

    Args:
        family: a key of :data:`FAMILIES`.
        model: one of the family's models; its default if neither this nor weights are given.
        weights: a local file or folder to read instead of downloading.
        device: torch device.
        offline: refuse to download, as does ``NUCLEATE_OFFLINE=1`` in the environment.
        arguments: further keyword arguments of the package's calculator.
        level_of_theory: what the energies imitate, if weights are not those of a known model.
        correction: the energy correction they include, likewise.
        python: another interpreter to compute in.
        workers: processes of that interpreter, 1 by default.
        timeout: seconds for one crystal there, 60 by default.

    Raises:
        RecipeError: an unknown model, or local weights of unknown level of theory.
        InputError: there are no such weights, or the network is needed and not to be used.
        MissingDependencyError: the package is missing.
    """
    known = FAMILIES[family]
    if weights is None and model is None:
        model = known.default
    if model is not None and model not in known.levels:
        raise RecipeError(
            f"{family} has no model {model!r}.",
            "Its level of theory would be unknown.",
            f"{did_you_mean(model, known.levels)} For your own, give 'weights', 'level_of_theory' "
            "and 'correction'.",
        )
    if weights is not None:
        weights = _local(family, known, model, weights, level_of_theory, correction)
    elif _is_offline(offline) and model not in known.included:
        raise InputError(
            f"The weights of {family} {model} are downloaded by {known.package}, and the network "
            "is not to be used.",
            fix="Give 'weights: /path/to/them', from a computer with a network.",
        )
    label = (model or Path(weights or "").stem).lower().removeprefix(f"{family}-")
    described = {
        "name": f"{family}-{label}",
        "level_of_theory": level_of_theory or known.levels.get(model or "", "unknown"),
        "correction": correction or "none",
    }
    settings = {
        **known.arguments.get(model or "", {}),
        **(arguments or {}),
        "model": model,
        "weights": weights,
        "device": device,
    }
    target = f"{calculators.__file__}:{family}"
    try:
        return make_ase_potential(target, settings, described, python, workers, timeout)
    except MissingDependencyError as error:
        pip = "pip" if python is None else f"{python} -m pip"
        other = "" if python else ", or name an interpreter that has it: 'python: /path/to/python'"
        raise MissingDependencyError(
            f"The potential {described['name']!r} needs the package {known.package}.",
            error.why,
            f"{pip} install {known.package}{other}.",
        ) from error


def _local(
    family: str,
    known: Family,
    model: str | None,
    weights: str,
    level_of_theory: str | None,
    correction: str | None,
) -> str:
    """Absolute path of local weights whose level of theory is known."""
    path = Path(weights).expanduser()
    if not path.exists():
        raise InputError(f"{family}: there are no weights {weights}.", fix="Check the path.")
    if model is None and known.needs_model:
        raise RecipeError(
            f"{family}: {weights} does not say which network it is for.",
            fix=f"Give the 'model' that it was made from: {', '.join(known.levels)}.",
        )
    if model is None and (level_of_theory is None or correction is None):
        raise RecipeError(
            f"{family}: what the energies of {weights} imitate is not known.",
            "Energies above hull need the level of theory and the energy correction.",
            "Give the 'model' that these weights are, or 'level_of_theory' and 'correction' "
            "('MP2020', or 'none' for raw DFT energies).",
        )
    return str(path.absolute())


def _is_offline(asked: bool) -> bool:
    return asked or os.environ.get("NUCLEATE_OFFLINE", "") not in ("", "0")


mace = partial(pretrained, "mace")
sevennet = partial(pretrained, "sevennet")
mattersim = partial(pretrained, "mattersim")
orb = partial(pretrained, "orb")
matgl = partial(pretrained, "matgl")
