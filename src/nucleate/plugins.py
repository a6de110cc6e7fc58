"""Properties and potentials by name: built in, or brought by an installed package.

A package adds its own through entry points of the groups ``nucleate.properties`` and
``nucleate.potentials``; the object named is a class or function that returns the property or
potential and takes its settings as keyword arguments. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nucleate.errors import MissingDependencyError, NucleateError, RecipeError, did_you_mean

PROPERTIES = "nucleate.properties"
POTENTIALS = "nucleate.potentials"

CUSTOM_SETTINGS = ("cost", "name", "python", "structures", "timeout", "unit", "workers")
"""Settings of a property given as ``path.py:function``."""
ISOLATED_SETTINGS = ("structures", "workers")
"""Those of them that need ``python``, another interpreter."""

_CUSTOM_KINDS = {"name": "str", "python": "str", "timeout": "float | None", "unit": "str"}

_BUILT_IN: Mapping[str, Mapping[str, str]] = {
    PROPERTIES: {
        "band_gap": "nucleate.properties.electronic:BandGap",
        "bulk_modulus": "nucleate.properties.mechanical:BulkModulus",
        "bulk_modulus_eos": "nucleate.properties.mechanical:BulkModulusOfState",
        "charge_balance": "nucleate.properties.composition:ChargeBalance",
        "coincident_area": "nucleate.properties.interface:CoincidentArea",
        "density": "nucleate.properties.composition:Density",
        "dielectric_total": "nucleate.properties.electronic:DielectricTotal",
        "e_above_hull": "nucleate.properties.stability:EnergyAboveHull",
        "element_mask": "nucleate.properties.composition:ElementMask",
        "figure_of_merit": "nucleate.properties.electronic:FigureOfMerit",
        "formation_energy": "nucleate.properties.stability:FormationEnergy",
        "heat_capacity": "nucleate.properties.thermal:HeatCapacity",
        "hhi_production": "nucleate.properties.composition:HhiProduction",
        "hhi_reserve": "nucleate.properties.composition:HhiReserve",
        "log_crustal_abundance": "nucleate.properties.composition:LogCrustalAbundance",
        "magnetic_density": "nucleate.properties.magnetic:MagneticDensity",
        "number_density": "nucleate.properties.composition:NumberDensity",
        "phonon_stability": "nucleate.properties.thermal:PhononStability",
        "predicted": "nucleate.properties.predicted:Predicted",
        "price": "nucleate.properties.composition:Price",
        "pugh_ratio": "nucleate.properties.mechanical:PughRatio",
        "refractive_index": "nucleate.properties.electronic:RefractiveIndex",
        "shear_modulus": "nucleate.properties.mechanical:ShearModulus",
        "synthesizability": "nucleate.properties.synthesis:Synthesizability",
        "vickers_hardness": "nucleate.properties.mechanical:VickersHardness",
        "young_modulus": "nucleate.properties.mechanical:YoungModulus",
    },
    POTENTIALS: {
        "ase": "nucleate.physics.potentials:ase_potential",
        "chgnet": "nucleate.physics.chgnet:ChgnetPotential",
        "isolated": "nucleate.execution.isolated:IsolatedPotential",
        "mace": "nucleate.physics.pretrained:mace",
        "matgl": "nucleate.physics.pretrained:matgl",
        "mattersim": "nucleate.physics.pretrained:mattersim",
        "orb": "nucleate.physics.pretrained:orb",
        "sevennet": "nucleate.physics.pretrained:sevennet",
    },
}


@dataclass(frozen=True)
class Plugin:
    """Something that can be looked up by name.

    Attributes:
        name: the name.
        target: ``module:attribute`` that makes it.
        provider: the distribution that brings it, with version, or "built in".
    """

    name: str
    target: str
    provider: str


def available(group: str) -> dict[str, Plugin]:
    """All plug-ins of a group, by name; built-in names can't be taken by others."""
    found = {
        name: Plugin(name, target, "built in") for name, target in _BUILT_IN.get(group, {}).items()
    }
    for entry in metadata.entry_points(group=group):
        if entry.name not in found:
            provider = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
            found[entry.name] = Plugin(entry.name, entry.value, provider)
    return dict(sorted(found.items()))


def find(group: str, name: str) -> Plugin:
    """The plug-in of that name.

    Raises:
        RecipeError: there is none.
    """
    known = available(group)
    if name not in known:
        kind = _kind(group)
        raise RecipeError(f"There is no {kind} {name!r}.", fix=did_you_mean(name, known))
    return known[name]


def load(group: str, name: str) -> Any:
    """Import what a plug-in names: a class or function.

    Raises:
        RecipeError: there is no such plug-in, or its provider is broken.
        MissingDependencyError: it needs a package that is absent.
    """
    plugin = find(group, name)
    module_name, _, attribute = plugin.target.partition(":")
    try:
        loaded: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            loaded = getattr(loaded, part)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"The {_kind(group)} {name!r} ({plugin.provider}) can't be loaded.",
            f"{error.msg}.",
            f"Install the package that brings {error.name!r}.",
        ) from error
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"The {_kind(group)} {name!r} ({plugin.provider}) can't be loaded.",
            f"{plugin.target}: {error}.",
            "Update or remove the package that provides it.",
        ) from error
    return loaded


def create(group: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """Make the property or potential of that name with its settings.

    Raises:
        RecipeError: no such name, or a setting that it does not take.
    """
    settings = dict(settings or {})
    check_settings(group, name, settings, f"{_kind(group)} {name!r}")
    try:
        return load(group, name)(**settings)
    except NucleateError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"The {_kind(group)} {name!r} does not accept its settings.",
            f"{error}.",
            f"Given: {settings}.",
        ) from error


def check_settings(group: str, name: str, settings: Mapping[str, Any], where: str) -> None:
    """Check names of settings against the plug-in's own parameters.

    Args:
        group: entry-point group.
        name: plug-in.
        settings: settings meant for it.
        where: what to call the place in messages.

    Raises:
        RecipeError: an unknown name or setting, or a required one is missing.
    """
    known = available(group)
    if name not in known:
        raise RecipeError(
            f"{where}: there is no {_kind(group)} {name!r}.", fix=did_you_mean(name, known)
        )
    parameters = inspect.signature(load(group, name)).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in settings:
        if key not in parameters:
            fix = did_you_mean(key, parameters) if parameters else "Remove it."
            raise RecipeError(f"{where}: {name!r} has no setting {key!r}.", fix=fix)
        _check_kind(where, name, key, settings[key], parameters[key].annotation)
    for key, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty
        named = parameter.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        if required and named and key not in settings:
            raise RecipeError(
                f"{where}: {name!r} needs the setting {key!r}.", fix=f"Add '{key}: ...'."
            )


def _is_number(value: Any, kind: Any = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(float(value))


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "float": (_is_number, "a finite number"),
    "int": (lambda value: _is_number(value, Integral), "a whole number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "text"),
    "Path": (lambda value: isinstance(value, Path), "a path"),
    "Sequence[float]": (
        lambda value: isinstance(value, Sequence) and all(map(_is_number, value)),
        "a list of numbers",
    ),
    "None": (lambda value: value is None, "null"),
}
"""Annotations of parameters: what a value must be, and that in words."""


def _check_kind(where: str, name: str, key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another kind than its parameter's, where that is a plain one."""
    kinds = str(annotation).split(" | ")
    if not all(kind in _KINDS for kind in kinds) or any(_KINDS[kind][0](value) for kind in kinds):
        return
    wanted = " or ".join(_KINDS[kind][1] for kind in kinds)
    raise RecipeError(
        f"{where}: {key!r} of {name!r} can't be {value!r}.", fix=f"Give {wanted}: '{key}: ...'."
    )


def is_custom(name: str) -> bool:
    """True for ``path.py:function``."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def check_custom_settings(settings: Mapping[str, Any], where: str) -> None:
    """Check names of settings of a ``path.py:function`` property.

    Raises:
        RecipeError: an unknown one, or one that lacks its companion.
    """
    for key in settings:
        if key not in CUSTOM_SETTINGS:
            raise RecipeError(
                f"{where}: a function has no setting {key!r}.",
                fix=did_you_mean(key, CUSTOM_SETTINGS),
            )
        if key in _CUSTOM_KINDS:
            _check_kind(where, "function", key, settings[key], _CUSTOM_KINDS[key])
        if key in ISOLATED_SETTINGS and "python" not in settings:
            raise RecipeError(
                f"{where}: {key!r} is a setting of another interpreter, and none is given.",
                fix="Add 'python: /path/to/its/python', or remove it.",
            )
    from nucleate.protocols import CostClass

    costs = [cost.value for cost in CostClass]
    if settings.get("cost", costs[0]) not in costs:
        raise RecipeError(
            f"{where}: there is no cost class {settings['cost']!r}.",
            fix=did_you_mean(str(settings["cost"]), costs),
        )


def custom_path(name: str, base: Path, where: str) -> tuple[Path, str]:
    """File and function of ``path.py:function``, relative to the working directory or ``base``.

    Raises:
        RecipeError: no such file.
    """
    text, _, function = name.rpartition(":")
    path = Path(text).expanduser()
    for candidate in (path, base / path):
        if candidate.is_file():
            return candidate.resolve(), function
    raise RecipeError(
        f"{where}: there is no file {text}.",
        f"It was looked for in {Path.cwd()} and {base.resolve()}.",
        "Write the property as path/to/file.py:function.",
    )


def absolute_settings(name: str, settings: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Settings of a property with the paths among them spelt out.

    A property says in ``paths`` which of its settings name files, and which names are none. What is
    found neither in the working directory nor in ``base`` is left for the property to refuse.

    Args:
        name: of the property, or ``path.py:function``.
        settings: its settings.
        base: folder that a path is relative to beside the working directory.
    """
    given = dict(settings)
    if is_custom(name):
        return given | _interpreter(given, base)
    for key, known in getattr(load(PROPERTIES, name), "paths", {}).items():
        if isinstance(given.get(key), str):
            given[key] = _absolute(given[key], base, known)
    if "potential" in given:
        given["potential"] = absolute_potential(given["potential"], base)
    return given


def absolute_potential(spec: Any, base: Path) -> Any:
    """The same for a potential: its ``weights``, ``calculator`` and ``python``."""
    if not isinstance(spec, Mapping):
        return spec
    given = dict(spec) | _interpreter(spec, base)
    if isinstance(given.get("weights"), str):
        given["weights"] = _absolute(given["weights"], base)
    if is_custom(str(given.get("calculator"))):
        path, _, function = given["calculator"].rpartition(":")
        given["calculator"] = f"{_absolute(path, base)}:{function}"
    return given


def _interpreter(settings: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The setting ``python``, if it is a path and no command."""
    python = settings.get("python")
    is_path = isinstance(python, str) and os.sep in python
    return {"python": _absolute(str(python), base)} if is_path else {}


def _absolute(text: str, base: Path, known: Container[str] = ()) -> str:
    """An absolute path with its links, and with the facet that may follow: "film.cif(100)"."""
    split = re.fullmatch(r"(.*?)(\([-\d, ]+\))?", text, re.DOTALL)
    assert split is not None
    for stem, facet in ((text, ""), (split[1], split[2] or "")):
        if stem in known:
            return text
        path = Path(stem).expanduser()
        for candidate in (path, base / path):
            if candidate.exists():
                return os.path.abspath(candidate) + facet  # noqa: PTH100  links are kept
    return text


def _kind(group: str) -> str:
    return {PROPERTIES: "property", POTENTIALS: "potential"}.get(group, group)
