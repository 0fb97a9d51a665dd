"""Answers of models that an earlier evaluation has sampled and judged already, for one of the same kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.configs.evaluate import EvaluateConfig
from prefloop.data.fingerprints import fingerprint
from prefloop.data.rows import read_jsonl
from prefloop.types import PrefloopError

FREE = ("out", "policy", "baselines", "earlier")  # what two evaluations may differ in


def known_rows(config: EvaluateConfig, models: Mapping[str, str], judged_by: Mapping[str, str]) -> dict[str, list[Any]]:
    """Lines of samples.jsonl, by name of a model ("sft", "base"), as far as `config.earlier` hold them. A model counts
    as the same where its name in the evaluation and its content are. PrefloopError for a folder that is no finished
    evaluation, or one of other prompts, another judge or other settings."""
    found: dict[str, list[Any]] = {}
    for folder in map(Path, config.earlier):
        if not (folder / "result.json").is_file():
            raise PrefloopError(f"evaluate.earlier: {folder} is no finished evaluation; give one's run folder.")
        settings, about = (json.loads((folder / name).read_bytes()) for name in ("config.json", "run.json"))
        known, own = about.get("fingerprints", {}), config.model_dump(mode="json")
        inputs = {"prompts": config.prompts, **judged_by}
        differing = [key for key in own if key not in FREE and settings.get(key) != own[key]]
        differing += [role for role, name in inputs.items() if known.get(role) != fingerprint(name)]
        if differing:
            raise PrefloopError(
                f"evaluate.earlier: {folder} was made with other {', '.join(dict.fromkeys(differing))};"
                " its answers can't be compared with these. Leave it out, or evaluate alike."
            )
        same = {
            name
            for name, path in models.items()
            if known.get(name) == (mark := fingerprint(path)) and (mark or about["parents"].get(name) == path)
        } - found.keys()
        for _, row in read_jsonl(folder / "samples.jsonl"):
            if row["model"] in same:
                found.setdefault(row["model"], []).append({"from": str(folder)} | row)
    return found
