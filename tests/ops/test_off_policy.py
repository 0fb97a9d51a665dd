"""Weights of tokens that another policy wrote."""

from __future__ import annotations

import pytest
import torch

from prefloop.ops.off_policy import importance_weights


def test_a_weight_beyond_all_bounds_is_masked_or_cut() -> None:
    log_ratio = torch.tensor([0.0, 1.0, 100.0, -100.0])  # exp(100) is infinite in fp32
    assert importance_weights(log_ratio, beyond="mask", low=0.5, high=2.0).tolist() == [1.0, 0.0, 0.0, 0.0]
    cut = importance_weights(log_ratio, beyond="truncate", low=0.5, high=2.0).tolist()
    assert cut == pytest.approx([1.0, 2.0, 2.0, 0.5])
