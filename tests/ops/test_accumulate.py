import pytest
import torch

from prefloop.ops.accumulate import PIECE, accumulate


@pytest.mark.parametrize("shape", [(0, 3), (1,), (5, 7), (2, PIECE), (3, PIECE - 1), (3, PIECE + 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_torchs_own_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    total, part = torch.randn(shape), torch.randn(shape).to(dtype)
    wanted = total + part.float()
    accumulate(total, part)
    assert torch.equal(total, wanted)


def test_parts_and_totals_of_any_layout() -> None:
    total, part = torch.randn(6, 8), torch.randn(8, 6).bfloat16()
    wanted = total + part.T.float()
    accumulate(total, part.T)
    assert torch.equal(total, wanted)
    turned = torch.randn(8, 6)
    wanted = turned.T + part.T.float()
    accumulate(turned.T, part.T)
    assert torch.equal(turned.T, wanted)


def test_infinities_and_numbers_that_are_none_pass_through() -> None:
    total = torch.zeros(4)
    accumulate(total, torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-40]).bfloat16())
    assert total[0] == torch.inf and total[1] == -torch.inf and total[2].isnan() and 0 < total[3] < 1e-38
