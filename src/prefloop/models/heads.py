"""Scalar heads on the trunk's last hidden state: one for reward models, one for value functions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """Affine map from a hidden state of width D to one number, in fp32 whatever the trunk's dtype; starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def forward(self, hidden: Float[Tensor, "R D"]) -> Float[Tensor, " R"]:
        """Hidden states [R, D] of any float dtype to fp32 numbers [R]."""
        # A product and a sum: autocast would lower a matmul to bf16.
        return (hidden.float() * self.weight).sum(-1) + self.bias


def reward_head(width: int, seed: int) -> ScalarHead:
    """A reward head [D] -> 1: weights N(0, std 1/sqrt(D+1)), bias 0, drawn from its own generator seeded with `seed`.

    Source: the code form of Stiennon et al. 2020 (arXiv 2009.01325, appendix B.1), where 1/sqrt(D+1) is the *standard
    deviation*; the paper's text, "N(0, 1/(d_model+1))", gives the variance. The bias is that of Ziegler et al. 2019.
    """
    head = ScalarHead(width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, (width + 1) ** -0.5, generator=generator)
    return head


def value_head(width: int) -> ScalarHead:
    """A value head [D] -> 1 that starts at zero (Ziegler et al. 2019): the first advantages are the plain returns."""
    return ScalarHead(width)
