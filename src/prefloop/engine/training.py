"""What a learner keeps beside its weights: fp32 sums of gradients, Adam's moments, averages; and their way to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.ops.accumulate import accumulate


def into(master: Tensor) -> Any:
    """A hook that moves a bf16 gradient into its master's fp32 sum."""

    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            accumulate(master.grad, weight.grad)
        weight.grad = None

    return hook


def training_tensors(
    trained: Sequence[Tensor], optimizer: torch.optim.Optimizer, averages: Sequence[Tensor]
) -> dict[str, Tensor]:
    """All that an interrupted training has to find again, by name."""
    tensors: dict[str, Tensor] = {}
    for index, param in enumerate(trained):
        tensors[f"weight.{index}"] = param.detach()
        moments = optimizer.state.get(param)
        if moments:
            tensors[f"step.{index}"] = moments["step"]
            tensors[f"moment1.{index}"] = moments["exp_avg"]
            tensors[f"moment2.{index}"] = moments["exp_avg_sq"]
    return tensors | {f"average.{index}": average for index, average in enumerate(averages)}


@torch.no_grad()
def restore_tensors(
    trained: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    averages: Sequence[Tensor],
    saved: Mapping[str, Tensor],
) -> None:
    """Put back what `training_tensors` gave, bit for bit."""
    for index, param in enumerate(trained):
        param.copy_(saved[f"weight.{index}"])
        if f"moment1.{index}" in saved:
            optimizer.state[param] = {
                "step": saved[f"step.{index}"].to(param.device, copy=True),
                "exp_avg": saved[f"moment1.{index}"].to(param.device, copy=True),
                "exp_avg_sq": saved[f"moment2.{index}"].to(param.device, copy=True),
            }
    for index, average in enumerate(averages):
        average.copy_(saved[f"average.{index}"])
