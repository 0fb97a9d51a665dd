"""RMS normalisation with one fused kernel in the backward pass, where transformers' own has a dozen."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

# Classes that compute weight * x / sqrt(mean(x^2) + variance_epsilon), as Llama's does.
KINDS = frozenset(f"{f}RMSNorm" for f in ("GptOss", "Llama", "Mistral", "Olmo2", "Phi3", "Qwen2", "Qwen3", "SmolLM3"))


def fuse_norms(model: nn.Module) -> None:
    """Give the norms of these kinds, in place, the forward and backward pass below."""
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in KINDS and not issubclass(kind, _Fused):
            module.__class__ = _fused(cast(Any, kind))


@cache
def _fused(kind: Any) -> Any:
    """One class for all norms of a kind: compiled code tells modules apart by their classes."""
    return type(kind.__name__, (_Fused, kind), {})


class _Fused(nn.Module):
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.is_cuda:  # where torch has a kernel for each pass
            return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        made: Tensor = _rms_norm(hidden_states, self.weight, self.variance_epsilon)
        return made


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = 1 / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()  # once: kernels that take two dtypes are slow
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        made: Tensor = (wide * r).mul_(weight.float()).to(x.dtype)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """dx = r (w g - x r mean(w g x r)): a layer norm's backward pass at mean 0, which also takes off mean(w g)."""
        x, weight, r = ctx.saved_tensors
        grad, width = grads[0].contiguous(), x.shape[-1]
        made, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, torch.zeros_like(r), r, weight.float(), None, [True, False, False]
        )
        dx: Tensor = made.add_((grad @ weight)[..., None] * r.div(width).to(x.dtype))
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        return dx, r.to(x.dtype).flatten() @ (grad * x).view(-1, width), None


_rms_norm: Any = _RMSNorm.apply
