"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on a plain model, over peft; without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prefloop.models.layers import first_of_top, layer_of
from prefloop.types import PrefloopError


def attach(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: str | list[str] = "all-linear",
    last_layers: int | None = None,
    seed: int,
) -> None:
    """Add adapters W + (alpha/rank) B A in place; A random from `seed`, B zero, so that outputs do not change.

    `targets`: "all-linear" (every linear layer but the lm_head) or the names of layers. The base is frozen; adapters
    compute in its dtype (a learner keeps their fp32 masters). `last_layers`: only in so many layers at the top, so that
    the backward pass ends below them. Raises PrefloopError when adapters are there or no layer matches.
    """
    if _layers(model):
        raise PrefloopError("This model has LoRA adapters already; merge them before attaching new ones.")
    if last_layers is not None:
        targets = _top_linear(model, last_layers)
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise PrefloopError(f"LoRA targets {targets!r} match no layer of this model; name others.") from error
    dtype = next(model.parameters()).dtype
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.to(dtype)


def _top_linear(model: nn.Module, count: int) -> list[str]:
    """Full names of the linear layers in the top `count` layers."""
    first = first_of_top(model, count)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in linear if (layer := layer_of(name)) is not None and layer >= first]


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base, bit for bit: the reference policy for free. Adapters are back on afterwards."""
    layers = _layers(model)
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable adapter weights, A [rank, in] and B [out, rank], by their full names; empty without adapters."""
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the merged model under plain names, leaving `model` as it is; its own state without adapters."""
    merged = {f"{name}.weight": _merged(layer) for name, layer in _layers(model).items()}
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    return state | merged


@torch.no_grad()
def merged_weight(linear: nn.Module) -> Tensor:
    """The weight [out, in] of a linear layer with its adapter, if it has one, folded in."""
    return _merged(linear) if isinstance(linear, LoraLayer) else cast(Tensor, linear.weight)


def _merged(layer: LoraLayer) -> Tensor:
    weight = cast(Any, layer.get_base_layer()).weight
    delta = cast(Any, layer).get_delta_weight("default")
    return cast(Tensor, (weight.float() + delta.float()).to(weight.dtype))


def _layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
