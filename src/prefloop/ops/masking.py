"""Reductions over the positions a mask selects; what stands outside the mask is never read, not even a NaN.

A mask is bool, or a float weight per position (0 = outside). B branch, T token.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def masked_sum(x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """sum_i mask_i x_i over every axis, as a scalar; 0 when the mask is all zero."""
    return torch.where(mask != 0, x * mask, 0.0).sum()


def masked_mean(x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """sum_i mask_i x_i / sum_i mask_i, as a scalar. ValueError when the mask is all zero."""
    if not mask.any():
        raise ValueError("masked_mean: the mask is all zero, so the mean is undefined; skip this batch or fix its mask")
    return masked_sum(x, mask) / mask.sum()


def whiten(
    x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "*shape"], *, shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(var + 1e-8), with mean and *biased* variance over the mask, and 0 outside it.

    shift_mean=False adds the mean back: rewards keep their sign (Ziegler et al. 2019, code). ValueError when the mask
    is all zero.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask != 0, whitened if shift_mean else whitened + mean, 0.0)
