"""Recipes are data: YAML read strictly into frozen models, with errors that a user can act on.

Every room describes its settings as a :class:`Settings` model; :func:`load_settings` reads a YAML
file into one. Unknown keys are found before values are judged, and each message names the file,
the line, the dotted path and the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from nucleate.errors import InputError, RecipeError, cause, did_you_mean


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no infinities by accident."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SettingsT = TypeVar("SettingsT", bound=Settings)


def option(default: Any = ..., description: str = "", unit: str = "", **bounds: Any) -> Any:
    """A field with description, unit and bounds (``ge``, ``gt``, ``le``, ``lt``, ...)."""
    extra: dict[str, Any] | None = {"unit": unit} if unit else None
    if callable(default):
        return Field(
            default_factory=default, description=description, json_schema_extra=extra, **bounds
        )
    return Field(default, description=description, json_schema_extra=extra, **bounds)


class SettingsError(ValueError):
    """What a model's own check finds wrong: why, and how to mend it."""

    def __init__(self, why: str, fix: str) -> None:
        self.fix = fix
        super().__init__(why)


def written_as(pattern: str, form: str) -> AfterValidator:
    """Text of a form, which a message names instead of the pattern."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise SettingsError("it is not of the form that is read", f"Write {form}.")
        return value

    return AfterValidator(check)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML 1.2 scalars: only true/false are booleans (No is nobelium), 1e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float",
                       "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}  # fmt: skip
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader: plain values only


Path_ = tuple[str | int, ...]


class Document:
    """A YAML mapping with the line of each of its keys.

    Attributes:
        data: the content as plain values.
        source: what to call it in messages.
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._lines: dict[Path_, int] = {}
        self._overridden: dict[Path_, str] = {}
        try:
            node = yaml.compose(text, Loader=_Loader)
            self.data: Any = _read_yaml(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise RecipeError(
                f"{source}, line {line}: this is not YAML.",
                f"{(error.problem or 'It cannot be parsed').capitalize()}.",
                "Check indentation, colons and brackets around that line.",
            ) from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{source}: this is not YAML.", str(error)) from error
        if self.data is None:
            self.data = {}
        if not isinstance(self.data, dict):
            raise RecipeError(
                f"{source}: a recipe is a list of 'key: value' lines.",
                f"This file holds a {type(self.data).__name__}.",
                "Start from a built-in recipe.",
            )
        if node is not None:
            self._index(node, ())

    def _index(self, node: yaml.Node, path: Path_) -> None:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, key.value)
                line = key.start_mark.line + 1
                if here in self._lines:
                    raise RecipeError(
                        f"{self.source}, line {line}: {dotted(here)} is given twice.",
                        f"It stands in line {self._lines[here]} already.",
                        "Remove one of them.",
                    )
                self._lines[here] = line
                self._index(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._index(value, (*path, i))

    def override(self, assignment: str) -> None:
        """Apply one ``a.b.0.c=value``; the value is read as YAML."""
        name, equals, text = assignment.partition("=")
        if not equals or not all(part.strip() for part in name.split(".")):
            raise RecipeError(
                f"{assignment!r} is no override.",
                fix="Write it as section.key=value, such as budget.steps=20.",
            )
        parts = tuple(int(p) if p.isdigit() else p.strip() for p in name.strip().split("."))
        try:
            value = _read_yaml(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value of the override {assignment!r} is not YAML.") from error
        where = self.data
        for i, part in enumerate(parts[:-1]):
            if isinstance(where, dict):
                if not isinstance(where.get(str(part)), (dict, list)):
                    where[str(part)] = {}
                where = where[str(part)]
            elif isinstance(part, int) and part < len(where):
                where = where[part]
                if not isinstance(where, (dict, list)):
                    raise RecipeError(
                        f"The override {assignment!r} leads nowhere.",
                        f"{dotted(parts[: i + 1])} is a single value.",
                        "Give the whole list as [a, b].",
                    )
            else:
                raise RecipeError(
                    f"The override {assignment!r} leads nowhere.",
                    f"{dotted(parts[:i])} is a list of {len(where)}, counted from 0.",
                    "Give a number in that range.",
                )
        last = parts[-1]
        if isinstance(where, dict):
            where[str(last)] = value
        elif isinstance(last, int) and last < len(where):
            where[last] = value
        else:
            raise RecipeError(
                f"The override {assignment!r} leads nowhere.",
                f"{dotted(parts[:-1])} is a list of {len(where)}, counted from 0.",
                "Give a number in that range.",
            )
        self._overridden[parts] = assignment

    def locate(self, path: Path_) -> str:
        """Where a value comes from: file and line, or the override that set it."""
        for size in range(len(path), 0, -1):
            for overridden, assignment in self._overridden.items():
                if overridden[:size] == path[:size] and len(overridden) >= size:
                    return f"Override {assignment!r}"
            if path[:size] in self._lines:
                return f"{self.source}, line {self._lines[path[:size]]}"
        return self.source


def dotted(path: Path_) -> str:
    """``objective.terms.0.weight``."""
    return ".".join(str(part) for part in path)


def load_settings(
    model: type[SettingsT], text: str, source: str, overrides: Sequence[str] = ()
) -> SettingsT:
    """Read YAML text into a model.

    Args:
        model: the settings expected.
        text: YAML.
        source: name of the file, for messages.
        overrides: assignments such as ``budget.steps=20``, applied in order.

    Raises:
        RecipeError: not YAML, an unknown key, a missing key, or a value out of range.
    """
    document = Document(text, source)
    for assignment in overrides:
        document.override(assignment)
    return parse(model, document)


def parse(model: type[SettingsT], document: Document) -> SettingsT:
    """Validate a document against a model; see :func:`load_settings`."""
    unknown = list(_unknown_keys(model, document.data, ()))
    if unknown:
        path, known = unknown[0]
        more = f" {len(unknown) - 1} more keys are unknown." if len(unknown) > 1 else ""
        section = dotted(path[:-1])
        inside = f" in {section}" if section else ""
        raise RecipeError(
            f"{document.locate(path)}: unknown key {dotted(path)!r}.",
            f"There is no {str(path[-1])!r}{inside}.{more}",
            did_you_mean(str(path[-1]), known),
        )
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise _recipe_error(model, document, error.errors()) from error


def read_text(path: Path) -> str:
    """Text of a file given by the user.

    Raises:
        InputError: missing, unreadable, or not text.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.", fix="Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read.", cause(error), "Check the file.") from error


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All models that an annotation mentions, through unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _choose(models: Sequence[type[BaseModel]], data: Mapping[str, Any]) -> list[type[BaseModel]]:
    """The models of a tagged union whose ``type`` is the data's; all if none is."""
    chosen = [
        model
        for model in models
        if "type" in model.model_fields
        and data.get("type") in get_args(model.model_fields["type"].annotation)
    ]
    return chosen or list(models)


def _unknown_keys(annotation: Any, data: Any, path: Path_) -> Iterator[tuple[Path_, set[str]]]:
    models = _models(annotation)
    if not models:
        return
    if isinstance(data, list):
        for i, entry in enumerate(data):
            yield from _unknown_keys(annotation, entry, (*path, i))
    elif isinstance(data, dict):
        chosen = _choose(models, data)
        fields = {name: field for model in chosen for name, field in model.model_fields.items()}
        for key, value in data.items():
            if key not in fields:
                yield (*path, key), set(fields)
            else:
                yield from _unknown_keys(fields[key].annotation, value, (*path, key))


def _recipe_error(
    model: type[BaseModel], document: Document, errors: list[ErrorDetails]
) -> RecipeError:
    found = _distinct(model, document.data, errors)
    path, field, first = found[0]
    name = dotted(path) or "the recipe"
    context = first.get("ctx", {})
    kind, given = first["type"], first.get("input")
    fix = ""
    if kind == "missing":
        what, why = f"{name} is missing.", "It has no default."
        fix = f"Add '{path[-1]}: ...'."
    elif kind == "union_tag_not_found":
        what, why = f"{name} needs a 'type'.", "Its type decides which keys it has."
        fix = f"Known types: {', '.join(_tags(field))}."
    elif kind in ("union_tag_invalid", "literal_error", "enum"):
        expected = str(context.get("expected", "")).replace(" or ", ", ")
        tags = _tags(field) or [part.strip("'") for part in expected.split(", ")]
        if kind == "union_tag_invalid" and isinstance(given, dict):
            given, path = given.get("type"), (*path, "type")
            name = dotted(path)
        what, why = f"{name} can't be {given!r}.", f"Allowed: {', '.join(tags)}."
        near = did_you_mean(str(given), tags)
        fix = near if near.startswith("Did") else ""
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        what, why = f"{name} can't be {given!r}.", "It is a section of 'key: value' lines."
    else:
        message = str(first["msg"]).removeprefix("Value error, ")
        message = re.sub(r"^Input should be ", "It must be ", message)
        shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
        what = f"{name} can't be used{shown}."
        why = message if message.endswith(".") else f"{message}."
        fix = getattr(context.get("error"), "fix", "")
    mended = isinstance(context.get("error"), SettingsError)
    if not mended and field is not None and field.description:
        unit = (
            (field.json_schema_extra or {}).get("unit")
            if isinstance(field.json_schema_extra, dict)
            else None
        )
        label = next((part for part in reversed(path) if isinstance(part, str)), "")
        fix = f"{fix} {label}: {field.description}{f' [{unit}]' if unit else ''}.".strip()
    others = ", ".join(dict.fromkeys(dotted(other) for other, _, _ in found[1:]))
    if others:
        fix = f"{fix} Look at {others} too.".strip()
    return RecipeError(f"{document.locate(path)}: {what}", why, fix)


def _distinct(
    model: type[BaseModel], data: Any, errors: list[ErrorDetails]
) -> list[tuple[Path_, Any, ErrorDetails]]:
    """Errors with path and field, less those that only echo another.

    A list with a bad entry is also reported as a bad list, and a value that fits no member of a
    union once for each member: the deepest report is kept, and of equally deep ones a literal's
    for text and another's for the rest.
    """
    found = [(*_follow(model, data, error["loc"]), error) for error in errors]
    kept: dict[Path_, tuple[Path_, Any, ErrorDetails]] = {}
    for path, field, error in found:
        if any(len(p) > len(path) and p[: len(path)] == path for p, _, _ in found):
            continue
        literal = error["type"] == "literal_error"
        if path not in kept or literal == isinstance(error.get("input"), str):
            kept[path] = (path, field, error)
    return list(kept.values())


def _follow(model: type[BaseModel], data: Any, location: Sequence[str | int]) -> tuple[Path_, Any]:
    """Path in the data (pydantic's location less union tags), and the field that it ends at."""
    path: list[str | int] = []
    annotation: Any = model
    field: Any = None
    for i, part in enumerate(location):
        if isinstance(data, dict) and isinstance(part, str):
            models = _choose(_models(annotation), data)
            owner = next((m for m in models if part in m.model_fields), None)
            if owner is None and part not in data:
                continue  # a tag of a union
            path.append(part)
            field = owner.model_fields[part] if owner else field
            annotation = field.annotation if owner else None
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
        elif i == len(location) - 1 and isinstance(part, int):
            path.append(part)
    return tuple(path), field


def _tags(field: Any) -> list[str]:
    """Values of ``type`` among the models of a field."""
    if field is None:
        return []
    return [
        tag
        for model in _models(field.annotation)
        if "type" in model.model_fields
        for tag in get_args(model.model_fields["type"].annotation)
    ]
