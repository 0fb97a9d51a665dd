"""Keys, types, defaults and docstrings of a configuration model, for the command line's help and the docs."""

import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from prefloop.configs.load import SHARED
from prefloop.configs.pipeline import STAGES
from prefloop.configs.shared import Config

_LONGEST = 60  # characters of a default


class Key(NamedTuple):
    """One line of help: `name` is dotted as for --set, `default` is TOML ("required" where there is none)."""

    name: str
    kind: str
    default: str
    help: str


def describe(model: type[Config], prefix: str = "", defaults: Config | None = None) -> Iterator[Key]:
    """Every key of `model`, those of nested tables in place. `defaults`: the instance an outer field starts from."""
    for name, field in model.model_fields.items():
        default = getattr(defaults, name) if defaults is not None else _default(field)
        nested = _table(field.annotation)
        if nested is None or default is None:
            yield Key(prefix + name, _kind(field.annotation), _toml(default), field.description or "")
        if nested is not None:
            yield from describe(nested, f"{prefix}{name}.", default if isinstance(default, Config) else None)


def stage_keys(stage: str) -> Iterator[Key]:
    """Keys of a recipe's section; for what the recipe shares among stages the default is "the recipe's"."""
    for key in describe(STAGES[stage]):
        first = key.name.partition(".")[0]
        shared = first in (*SHARED, "engine") or (stage, first) == ("sft", "model")
        if first != "out":
            yield key._replace(default="the recipe's") if shared else key


def _default(field: FieldInfo) -> Any:
    return ... if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _table(annotation: Any) -> type[Config] | None:
    parts = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Config)), None)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (UnionType, Union):
        return " or ".join(map(_kind, arguments))
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin in (dict, Mapping) or (isinstance(annotation, type) and issubclass(annotation, Config)):
        return "table"
    names = {str: "string", int: "integer", float: "number", bool: "true or false", NoneType: '"none"'}
    return names[annotation]


def _toml(value: Any) -> str:
    if value is ...:
        return "required"
    if value is None:
        return '"none"'
    if isinstance(value, Config):
        return "{" + ", ".join(f"{key} = {_toml(getattr(value, key))}" for key in type(value).model_fields) + "}"
    if isinstance(value, str) and len(value) > _LONGEST:
        value = value[:_LONGEST].rstrip() + "..."
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
