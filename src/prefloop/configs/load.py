"""A recipe file and `--set` overrides, turned into the strict models of this package."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from prefloop.configs.pipeline import STAGES, RecipeConfig
from prefloop.configs.shared import Config, nearest
from prefloop.types import PrefloopError

C = TypeVar("C", bound=Config)
SHARED = ("seed", "prompts")  # recipe keys that every stage with such a field takes over


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RecipeConfig:
    """The recipe at `path` after `overrides` ("ppo.kl.target=4", TOML values, bare strings allowed), wholly checked.

    Raises PrefloopError that names the file, section, key and value for: a missing file, broken TOML, an override
    without "=", an unknown key (and the nearest known one), a value of the wrong type or range, an unknown stage.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        table: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise PrefloopError(f"{path}: cannot read the recipe: {error.strerror}; name a TOML file.") from None
    except UnicodeDecodeError:
        raise PrefloopError(f"{path}: the recipe is not UTF-8 text; save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        place = f"at line {len(text.splitlines())}, the end of the document"
        raise PrefloopError(f"{path}: broken TOML: {str(error).replace('at end of document', place)}.") from None
    for override in overrides:
        table = _merged(table, _parse_override(override))
    try:
        recipe = _validated(RecipeConfig, table, "")
        for stage in recipe.stages:
            if stage not in STAGES:
                raise PrefloopError(f"stages: unknown stage {stage!r}; {nearest(stage, STAGES)}.")
        for stage in STAGES:
            if "out" in getattr(recipe, stage):
                raise PrefloopError(f"[{stage}] out: run folders follow from the recipe's name; set 'name' instead.")
            stage_config(recipe, stage)
    except PrefloopError as error:
        raise PrefloopError(f"{path}: {error}") from None
    return recipe


def stage_config(recipe: RecipeConfig, stage: str, **filled: Any) -> Config:
    """The configuration of one stage: its section, then `filled`, then what the recipe shares, then defaults.

    `filled`: inputs from predecessors (or `out`), taken where the section leaves the key out or empty.
    Raises PrefloopError for an unknown key or a value that the stage's model refuses.
    """
    kind, section = STAGES[stage], getattr(recipe, stage)
    table: dict[str, Any] = {"out": f"runs/{recipe.name}/{stage}"}
    table |= {key: getattr(recipe, key) for key in SHARED if key in kind.model_fields}
    if stage == "sft":
        table["model"] = recipe.model
    if "engine" in kind.model_fields:
        table["engine"] = recipe.engine.model_dump()
    table |= filled
    given = {key: value for key, value in section.items() if key not in filled or value not in ("", [], ())}
    return _validated(kind, _merged(table, given), stage)


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise PrefloopError(f"--set {text}: write key=value, for example --set ppo.kl.target=4.")
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": raw}
    table: dict[str, Any] = {names[-1]: parsed["value"] if len(parsed) == 1 else raw}
    for name in reversed(names[:-1]):
        table = {name: table}
    return table


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`; tables merge key by key, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _validated(kind: type[C], table: Mapping[str, Any], section: str) -> C:
    complete = _completed(kind, table, section)
    try:
        return kind.model_validate_json(json.dumps(complete, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    path = [str(part) for part in (section, *first["loc"]) if part != ""]
    where, key = f"[{'.'.join(path[:-1])}] " if path[:-1] else "", "".join(path[-1:])
    if first["type"] == "missing":
        raise PrefloopError(f"{where}{key} is missing; set it.")
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict) and first["type"] == "value_error":  # a rule between keys
        raise PrefloopError(f"[{'.'.join(path)}] {message}." if path else f"{message}.")
    message = message[0].lower() + message[1:]
    raise PrefloopError(f"{where}{key} = {json.dumps(first['input'])} is refused: {message}.")


def _completed(kind: type[Config], table: Mapping[str, Any], section: str) -> dict[str, Any]:
    """`table` with known keys only; a partial nested table keeps the other values of its `nested_defaults`, or else of
    that field's default."""
    result: dict[str, Any] = {}
    defaults = kind.nested_defaults(table)
    for key, value in table.items():
        if key not in kind.model_fields:
            where = f"in [{section}]" if section else "at the top level"
            raise PrefloopError(f"unknown key {key!r} {where}; {nearest(key, kind.model_fields)}.")
        field, inner = kind.model_fields[key], f"{section}.{key}" if section else key
        nested = _nested(field.annotation)
        if value == "none" and NoneType in get_args(field.annotation):
            value = None  # TOML has no null
        elif nested and isinstance(value, Mapping):
            default = defaults.get(key, field.default)
            base = default.model_dump() if isinstance(default, Config) else {}
            value = _completed(nested, _merged(base, value), inner)
        elif nested and isinstance(value, list | tuple):
            items = enumerate(value)
            value = [_completed(nested, v, f"{inner}.{i}") if isinstance(v, Mapping) else v for i, v in items]
        result[key] = value
    return result


def _nested(annotation: Any) -> type[Config] | None:
    """The Config inside `Config`, `Config | None` or `tuple[Config, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for part in get_args(annotation) if (found := _nested(part))), None)
