import pytest
import torch
from torch import nn

from prefloop.engine.training import masters_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [None, 2])
def test_rows_that_are_looked_up_learn_what_autograd_says(padding: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, plain = (nn.Embedding(7, 3, padding_idx=padding, dtype=dtype) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    (master,) = masters_of([ours.weight], ours)
    tokens, slope = torch.tensor([[1, 2, 5], [5, 2, 0]]), torch.randn(2, 3, 3).to(dtype)
    for times in (1, 2):
        for embedding in (ours, plain):
            (embedding(tokens) * slope).sum().backward()
        assert master.grad is not None and plain.weight.grad is not None
        torch.testing.assert_close(master.grad, plain.weight.grad.float(), rtol=1e-2, atol=1e-2)
        wanted = times * slope[0, 2].float() + times * slope[1, 0].float()
        torch.testing.assert_close(master.grad[5], wanted, rtol=1e-6, atol=1e-6)  # summed in fp32
    assert ours.weight.grad is (master.grad if dtype == torch.float32 else None)


def test_a_table_that_is_frozen_or_scaled_is_left_to_autograd() -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    scaled, frozen = Scaled(5, 2), nn.Embedding(5, 2)
    masters_of([scaled.weight], scaled)
    scaled(torch.tensor([1, 1])).sum().backward()
    assert scaled.weight.grad is not None and scaled.weight.grad[1].tolist() == [4, 4]
    masters_of([], frozen.requires_grad_(False))
    assert not frozen(torch.tensor([1])).requires_grad


def test_a_gradient_that_another_learner_took_is_missed() -> None:
    layer = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    for _ in range(2):
        masters_of([layer.weight], nn.Embedding(1, 1))
    with pytest.raises(AssertionError, match="another learner"):
        layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
