"""Which layer a parameter or module belongs to, training the upper layers only, and not running the others twice."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prefloop.ops.flex import KERNELS
from prefloop.types import PrefloopError


def layer_of(name: str) -> int | None:
    """The layer's number in a full name such as model.layers.7.mlp.up_proj; None outside the layers."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def first_of_top(model: nn.Module, count: int) -> int:
    """Number of the lowest among the top `count` layers. Raises PrefloopError when there are fewer."""
    layers = 1 + max(layer_of(name) or 0 for name, _ in model.named_modules())
    if count > layers:
        raise PrefloopError(f"last_layers is {count}, but this model has {layers} layers; ask for no more than these.")
    return layers - count


def freeze_below_top(model: nn.Module, count: int) -> None:
    """Only the top `count` layers, and what follows them, go on training: the backward pass ends below them."""
    first = first_of_top(model, count)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if (layer := layer_of(name)) is not None and layer < first:
            parameter.requires_grad_(False)


def layers_of(trunk: nn.Module) -> list[nn.Module]:
    """A decoder's layers, bottom first, under whatever name it keeps them."""
    return next([*part] for part in trunk.children() if isinstance(part, nn.ModuleList))


def compiled(layers: Sequence[nn.Module]) -> list[Callable[..., Any]]:
    """The forward of each layer, compiled when it first runs: layers of one shape share what is made."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KERNELS)
    return [torch.compile(layer.forward, dynamic=True) for layer in layers]


@contextmanager
def running(layers: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside, each layer runs its forward of these."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        yield
    finally:
        for layer, known in zip(layers, before, strict=True):
            if known is None:
                del layer.forward
            else:
                layer.forward = known


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these layers keep their inputs only, and run again in the backward pass (Chen et al. 2016,
    arXiv 1604.06174)."""
    with running(
        layers, [partial(checkpoint, one.forward, use_reentrant=False, preserve_rng_state=False) for one in layers]
    ):
        yield


@contextmanager
def carried(layers: Sequence[nn.Module], known: list[Any]) -> Iterator[None]:
    """Inside, a model's lowest `layers` run and leave in `known` what the last of them gives; where that is there
    already, it is given and none of them runs."""
    if not known and layers:
        hook = layers[-1].register_forward_hook(lambda _module, _inputs, output: known.append(output))
        try:
            yield
        finally:
            hook.remove()
        return
    with running(layers, [lambda *_, **__: known[0]] * len(layers)):
        yield
