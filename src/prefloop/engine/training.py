"""What a learner keeps beside its weights: fp32 sums of gradients, Adam's moments, averages; and their way to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.ops.accumulate import accumulate


def masters_of(weights: Sequence[Tensor], embedding: nn.Module, head: Tensor | None = None) -> list[Tensor]:
    """What an optimizer steps: of bf16 weights copies in fp32, others themselves. Gradients go there by themselves,
    but those of the head's weight that token_logprobs puts there."""
    masters = [w.detach().float().clone() if w.dtype != torch.float32 else w for w in weights]
    for weight, master in zip(weights, masters, strict=True):
        if master is not weight:
            weight.register_post_accumulate_grad_hook(_into(master, weight is head))  # type: ignore[no-untyped-call]  # torch's own
        if type(embedding) is nn.Embedding and embedding.weight is weight and not weight.is_cuda:
            embedding.register_forward_hook(_rows_into(master))
    return masters


def reserve_gradient(master: Tensor) -> Tensor:
    """Its gradient, of zeros where it had none. Of a large weight before the forward pass: that would take the memory
    that the last step's gradient left, piece by piece, and as much again would be needed after it."""
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


def _into(master: Tensor, elsewhere: bool) -> Any:
    """A hook that moves a bf16 gradient into its master's fp32 sum, if it has not gone elsewhere."""

    def hook(weight: Tensor) -> None:
        if weight.grad is None:
            assert elsewhere, "the model is learned by another learner, which has taken its gradient"
            return
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            accumulate(master.grad, weight.grad)
        weight.grad = None

    return hook


def _rows_into(master: Tensor) -> Any:
    """A hook by which the gradient of the rows that were looked up goes into the master: autograd would make one of the
    whole table first. As in torch, the row of a padding token learns nothing here."""

    def hook(embedding: nn.Embedding, given: tuple[Tensor], found: Tensor) -> Tensor:
        if not found.requires_grad:
            return found
        rows = given[0].flatten()
        learn = slice(None) if embedding.padding_idx is None else rows != embedding.padding_idx

        def add(grad: Tensor) -> None:
            reserve_gradient(master).index_add_(0, rows[learn], grad.flatten(0, -2)[learn].float())

        found = found.detach().requires_grad_()
        found.register_hook(add)  # type: ignore[no-untyped-call]  # torch's own
        return found

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
