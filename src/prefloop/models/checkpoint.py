"""A checkpoint: a Hugging Face model folder plus our record, head, optimizer tensors and loop state. No pickle.

`prefloop.json` names the sha256 and size of every other file, and its own; nothing that fails them is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefloop.models.heads import ScalarHead
from prefloop.models.load import Model, Tokenizer, new_folder
from prefloop.models.lora import adapter_parameters, merged_state
from prefloop.types import Checkpoint, Json, PrefloopError, from_json, to_json

FORMAT = 1
MANIFEST, HEAD, MEMBERS = "prefloop.json", "head.safetensors", "members.safetensors"
ADAPTERS = "adapters.safetensors"
TRAINING, STATE = "training.safetensors", "state.json"
_OF_HEAD = ("weight", "bias")


def save_checkpoint(
    folder: str | Path,
    *,
    record: Checkpoint,
    model: Model,
    tokenizer: Tokenizer,
    head: ScalarHead | None = None,
    members: Sequence[ScalarHead] = (),
    training: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Json] | None = None,
) -> Checkpoint:
    """Write a checkpoint, whole or not at all, and return `record` with its path; an older one there is replaced.

    `model` keeps its dtype; LoRA adapters are written merged (put `adapter_parameters` into `training` to resume them),
    beside a head apart too, so that reward models on one trunk can share it.
    `members`: further heads on the same trunk, an ensemble with `head`.
    `training`: master weights and optimizer moments by name; `state`: plain JSON, finite numbers only.
    """
    with new_folder(folder) as new:
        model.save_pretrained(new, state_dict=merged_state(model))
        tokenizer.save_pretrained(new)
        if head is not None:
            save_file(_plain(head.state_dict()), new / HEAD)
            if adapters := adapter_parameters(model):
                save_file(_plain({name: weight.detach() for name, weight in adapters.items()}), new / ADAPTERS)
        if members:
            stacked = {name: torch.stack([member.state_dict()[name] for member in members]) for name in _OF_HEAD}
            save_file(_plain(stacked), new / MEMBERS)
        if training is not None:
            save_file(_plain(training), new / TRAINING)
        if state is not None:
            (new / STATE).write_text(json.dumps(to_json(state), allow_nan=False), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "checkpoint": to_json(dataclasses.replace(record, path="")),
            "files": {str(file.relative_to(new)): _describe(file) for file in sorted(new.rglob("*")) if file.is_file()},
        }
        sealed = manifest | {"sha256": _seal(manifest)}
        (new / MANIFEST).write_text(json.dumps(sealed, indent=1, allow_nan=False), encoding="utf-8")
    return dataclasses.replace(record, path=str(folder))


def read_checkpoint(folder: str | Path, *, verify: bool = False) -> Checkpoint:
    """The record of a checkpoint, its path being `folder`; sizes of files are always checked, hashes with `verify`.

    Raises PrefloopError when it is no checkpoint, of another format, or damaged.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise PrefloopError(f"The checkpoint {folder} is damaged: {name} is missing; use another checkpoint.")
        found = _describe(file) if verify else {"bytes": file.stat().st_size}
        for key, value in found.items():
            if value != expected[key]:
                raise PrefloopError(
                    f"The checkpoint {folder} is damaged: {name} has {key} {value}, not {expected[key]}; use another."
                )
    record = from_json(Checkpoint, manifest["checkpoint"], str(folder / MANIFEST))
    return dataclasses.replace(record, path=str(folder))


def load_head(folder: str | Path) -> ScalarHead:
    """The scalar head of a checkpoint (width D from its file). Raises PrefloopError when it has none."""
    file = _part(folder, HEAD)
    if file is None:
        raise PrefloopError(f"The checkpoint {folder} has no {HEAD}: it is not a reward model's; give one of those.")
    return _head(load_file(file))


def load_members(folder: str | Path) -> list[ScalarHead]:
    """The further heads of a checkpoint; empty when it has none."""
    file = _part(folder, MEMBERS)
    if file is None:
        return []
    tensors = load_file(file)
    return [_head({name: tensors[name][place] for name in _OF_HEAD}) for place in range(len(tensors["bias"]))]


def load_adapters(folder: str | Path) -> dict[str, Tensor]:
    """The LoRA adapters of a reward model's checkpoint by their full names; empty when it has none."""
    file = _part(folder, ADAPTERS)
    return {} if file is None else load_file(file)


def load_training(folder: str | Path) -> dict[str, Tensor]:
    """The tensors saved as `training`, on the CPU; empty when there were none."""
    file = _part(folder, TRAINING)
    return {} if file is None else load_file(file)


def load_state(folder: str | Path) -> dict[str, Any]:
    """The loop state of a checkpoint; empty when there was none."""
    file = _part(folder, STATE)
    return {} if file is None else dict(json.loads(file.read_text(encoding="utf-8")))


def latest_checkpoint(parent_folder: str | Path) -> Path | None:
    """The `step-N` folder of the highest N whose hashes verify, or None. Temporary ones do not count."""
    steps = {
        int(number): path
        for path in Path(parent_folder).glob("step-*")
        if path.is_dir() and (number := path.name.removeprefix("step-")).isdecimal()
    }
    for step in sorted(steps, reverse=True):
        try:
            read_checkpoint(steps[step], verify=True)
        except PrefloopError:
            continue
        return steps[step]
    return None


def _head(tensors: Mapping[str, Tensor]) -> ScalarHead:
    head = ScalarHead(tensors["weight"].numel())
    head.load_state_dict(tensors)
    return head


def _part(folder: str | Path, name: str) -> Path | None:
    read_checkpoint(folder)
    return Path(folder) / name if name in _manifest(Path(folder))["files"] else None


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise PrefloopError(f"{folder} is not a checkpoint: it has no {MANIFEST}; give the folder of a saved step.")
    try:
        manifest = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise PrefloopError(f"The checkpoint {folder} is damaged: {MANIFEST} is not JSON; use another.") from error
    if manifest.get("format") != FORMAT:
        raise PrefloopError(
            f"The checkpoint {folder} has format {manifest.get('format')}, this version reads {FORMAT}; use another."
        )
    if manifest.pop("sha256", None) != _seal(manifest):
        raise PrefloopError(f"The checkpoint {folder} is damaged: {MANIFEST} was changed; use another.")
    return manifest


def _seal(manifest: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _describe(file: Path) -> dict[str, Json]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
