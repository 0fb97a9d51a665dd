import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.ops.masking import masked_mean, masked_sum, whiten

NAN = float("nan")


def test_sum_and_mean_read_only_what_the_mask_selects() -> None:
    x = torch.tensor([[1.0, NAN], [2.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    assert masked_sum(x, mask) == 5
    assert masked_mean(x, mask) == 2.5
    masked_mean(x, mask).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_float_masks_are_weights() -> None:
    x, weight = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([3.0, 1.0, 0.0])
    assert masked_sum(x, weight) == 6
    assert masked_mean(x, weight) == 1.5


def test_mean_of_nothing_is_an_error() -> None:
    assert masked_sum(torch.ones(3), torch.zeros(3)) == 0
    with pytest.raises(ValueError, match="all zero"):
        masked_mean(torch.ones(3), torch.zeros(3))


def test_whiten_without_mean_shift_gives_the_published_vector() -> None:
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    expected = torch.tensor([0.0508, 0.4381, 0.8254, 1.2127, 1.6, 1.9873, 2.3746, 2.7619, 3.1492])
    whitened = whiten(x, torch.ones(3, 3, dtype=torch.bool), shift_mean=False)
    torch.testing.assert_close(whitened.flatten(), expected, atol=5e-5, rtol=0)


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=2, max_size=30))
def test_whitened_values_have_mean_0_and_biased_variance_1(rows: list[tuple[float, bool]]) -> None:
    rows = [*rows, (-3.0, True), (7.0, True)]
    x = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    mask = torch.tensor([live for _, live in rows])
    whitened = whiten(x, mask)
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened[mask].var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert (whitened[~mask] == 0).all()
    torch.testing.assert_close(whiten(torch.where(mask, x, NAN), mask), whitened)


def test_whitening_a_constant_stays_finite() -> None:
    assert whiten(torch.full((4,), 2.0), torch.ones(4)).tolist() == [0, 0, 0, 0]
