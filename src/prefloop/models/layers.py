"""Which layer a parameter or module belongs to, and training the upper layers only."""

import re

from torch import nn


def layer_of(name: str) -> int | None:
    """The layer's number in a full name such as model.layers.7.mlp.up_proj; None outside the layers."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def first_of_top(model: nn.Module, count: int) -> int:
    """Number of the lowest among the top `count` layers (0 or less when there are no more than that)."""
    return 1 + max((layer_of(name) or 0 for name, _ in model.named_modules()), default=-1) - count


def freeze_below_top(model: nn.Module, count: int) -> None:
    """Only the top `count` layers, and what follows them, go on training: the backward pass ends below them."""
    first = first_of_top(model, count)
    model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]  # transformers' models have it
    for name, parameter in model.named_parameters():
        if (layer := layer_of(name)) is not None and layer < first:
            parameter.requires_grad_(False)
