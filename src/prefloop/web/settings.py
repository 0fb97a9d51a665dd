"""A campaign's settings as a form: what stands in its fields, and what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from pydantic import ValidationError

from prefloop.configs.campaign import CampaignConfig
from prefloop.types import Json, PrefloopError

Typed = Mapping[str, str]
"""Field by field what stands in a form; a box that is not checked is empty or missing."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_LONGEST_RUN = 120
_MIX = "Percent of each kind of prompt, such as: hard = 30. They sum to 100; empty: as the items come."


class Field(NamedTuple):
    """One setting. kind: text, long, lines (one entry a line), check, choice, number, share (percent) or mix. note: in
    place of the configuration's own words, where they do not fit a form."""

    name: str
    label: str
    kind: str
    note: str = ""

    @property
    def hint(self) -> str:
        return self.note or CampaignConfig.model_fields[self.name].description or ""


SECTIONS: Mapping[str, tuple[Field, ...]] = {
    "What labelers read": (Field("title", "Title", "text"), Field("guidelines", "Guidelines", "long")),
    "What they answer": (
        Field("axes", "Axes, one a line", "lines"),
        Field("flags", "Flags, one a line", "lines"),
        Field("rubric", "Rubric, one box a line", "lines"),
        Field("rationale", "Rationale", "choice"),
        Field("ties", "Ties", "check"),
        Field("ratings", "Ratings", "check"),
        Field("edits", "Better answers", "check"),
    ),
    "How many label each item": (
        Field("overlap", "Labels per item", "number"),
        Field("shared_share", "Calibration pool, %", "share"),
        Field("shared_overlap", "Labels per item of the pool", "number"),
    ),
    "Checks on the labels": (
        Field("calibration", "Tasks of the calibration round", "number"),
        Field("gold_share", "Gold items, %", "share"),
        Field("repeat_share", "Items shown again, %", "share"),
        Field("feedback", "Feedback", "check"),
    ),
    "Order and leases": (
        Field("uniform_share", "Uniform picks, %", "share"),
        Field("mix", "Mix of prompts, one kind a line", "mix", _MIX),
        Field("lease_minutes", "Lease in minutes", "number"),
        Field("hold_hours", "Longest hold in hours", "number"),
    ),
    "Conversations": (Field("red_team", "Checkpoints, one a line", "lines"),),
}
FIELDS = {field.name: field for fields in SECTIONS.values() for field in fields}
RATIONALES = ("off", "optional", "required")


def shown(config: CampaignConfig) -> dict[str, str]:
    """A configuration as it stands in the form."""
    return {name: _shown(field.kind, getattr(config, name)) for name, field in FIELDS.items()}


def read(typed: Typed) -> CampaignConfig:
    """The configuration that a form asks for. Raises FormError with a sentence for each field that does not fit."""
    values, problems = {}, {}
    for name, field in FIELDS.items():
        try:
            values[name] = _read(field.kind, typed.get(name, ""))
        except ValueError as error:
            problems[name] = str(error)
    try:
        config = CampaignConfig.model_validate({name: value for name, value in values.items() if name not in problems})
    except ValidationError as error:
        found = [(str(one["loc"][0]) if one["loc"] else "", one) for one in error.errors(include_url=False)]
        problems |= {name: _sentence(dict(one), FIELDS.get(name)) for name, one in reversed(found)}
    if problems:
        raise FormError(problems)
    return config


def read_run(text: str) -> str:
    """A name for a campaign's labels. Raises PrefloopError where it could not be one."""
    name = text.strip()
    if not _RUN.fullmatch(name) or len(name) > _LONGEST_RUN:
        raise PrefloopError("Name it with letters, digits and . _ - only, such as helpful-2; / separates parts.")
    return name


class FormError(PrefloopError):
    """`fields`: a sentence for each field that does not fit; "" is about several."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(" ".join(fields.values()))
        self.fields = fields


def _shown(kind: str, value: Json) -> str:
    match kind:
        case "lines":
            return "\n".join(value)
        case "check":
            return "on" if value else ""
        case "share":
            return _decimal(value, 100)
        case "mix":
            return "\n".join(f"{name} = {_decimal(share, 100)}" for name, share in value.items())
        case "number":
            return _decimal(value)
    return str(value)


def _decimal(value: float, times: int = 1) -> str:
    """0.025, 100 -> 2.5, exactly, so that a form that nobody changed changes nothing."""
    return format((Decimal(repr(value)) * times).normalize(), "f")


def _read(kind: str, text: str) -> Json:
    match kind:
        case "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "check":
            return bool(text)
        case "share":
            return _share(text)
        case "mix":
            return _mix(text)
        case "long":
            return text.replace("\r\n", "\n")
    return text.strip()


def _share(text: str) -> float:
    try:
        return float(Decimal(text.strip().removesuffix("%").rstrip()) / 100)
    except ArithmeticError:
        raise ValueError("Write a number of percent.") from None


def _mix(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for line in filter(str.strip, text.splitlines()):
        name, equals, share = (part.strip() for part in line.rpartition("="))
        if not (name and equals):
            raise ValueError("Write one kind a line with its share in percent, such as: hard = 30.")
        if name in shares:
            raise ValueError(f"{name} stands there twice; name each kind once.")
        shares[name] = _share(share)
    return shares


def _sentence(error: Mapping[str, Json], field: Field | None) -> str:
    limits = error.get("ctx", {})
    percent = field is not None and field.kind in ("share", "mix")
    limit = {key: f"{100 * value:g} %" if percent else f"{value:g}" for key, value in limits.items() if _number(value)}
    match error["type"]:
        case "too_short" | "string_too_short":
            return "Something must stand here."
        case "too_long":
            return f"Name at most {limit['max_length']}."
        case "string_too_long":
            return f"Write at most {limits['max_length']} characters{' a line' if len(error['loc']) > 1 else ''}."
        case "greater_than_equal":
            return f"It must be at least {limit['ge']}."
        case "greater_than":
            return f"It must be above {limit['gt']}."
        case "less_than_equal":
            return f"It must be at most {limit['le']}."
        case "int_parsing" | "int_from_float" | "int_parsing_size":
            return "Write a whole number."
        case "float_parsing" | "finite_number":
            return "Write a number."
        case "literal_error":
            return f"Choose {limits['expected']}."
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{message[0].upper()}{message[1:]}."


def _number(value: Json) -> bool:
    return isinstance(value, int | float)
