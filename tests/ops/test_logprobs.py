import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prefloop.ops import logprobs as logprobs_module
from prefloop.ops.logprobs import compared_logprobs, token_logprobs

R, V, D = 7, 11, 5


def _inputs(seed: int = 0, width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(R, width, generator=generator),
        torch.randn(V, width, generator=generator),
        torch.randint(V, (R,), generator=generator),
    )


def exact_kl(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor, **rest: Any) -> Tensor:
    targets = torch.zeros(len(hidden_p), dtype=torch.long)
    return compared_logprobs(hidden_p, weight_p, hidden_q, weight_q, targets, **rest).kl


def test_a_comparison_reads_what_each_model_says_alone() -> None:
    (hidden_p, weight_p, targets), (hidden_q, weight_q, _) = _inputs(0), _inputs(1)
    both = compared_logprobs(hidden_p, weight_p, hidden_q, weight_q, targets, temperature=0.7, softcap=3.0, chunk=2)
    logp, entropy = token_logprobs(hidden_p, weight_p, targets, temperature=0.7, softcap=3.0, entropy=True)
    logq, _ = token_logprobs(hidden_q, weight_q, targets, temperature=0.7, softcap=3.0)
    assert entropy is not None
    torch.testing.assert_close((both.logp, both.logq, both.entropy), (logp, logq, entropy))


def test_hand_computed_probabilities() -> None:
    weight = torch.tensor([[1.0], [2.0], [4.0]]).log()
    hidden, targets = torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([2, 0, 1])
    logprobs, entropy = token_logprobs(hidden, weight, targets, entropy=True)
    assert entropy is not None
    assert logprobs.exp().tolist() == pytest.approx([4 / 7, 1 / 21, 1 / 3])
    assert entropy[2].item() == pytest.approx(math.log(3))
    assert entropy[0].item() == pytest.approx(-sum(p * math.log(p) for p in (1 / 7, 2 / 7, 4 / 7)))


def test_softcap_comes_before_temperature() -> None:
    hidden, weight, targets = _inputs()
    logits = 1.5 * torch.tanh(hidden @ weight.T / 1.5) / 0.7
    logprobs, entropy = token_logprobs(hidden, weight, targets, temperature=0.7, softcap=1.5)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[torch.arange(R), targets])
    assert entropy is None


@pytest.mark.parametrize("kept", [0, 4 * V, 99 * V])
@pytest.mark.parametrize("trained", ["head", "below"])
@pytest.mark.parametrize("entropies", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 7, 1024])
def test_chunks_change_neither_values_nor_gradients(
    chunk: int, entropies: bool, trained: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs_module, "KEPT", kept)

    def run(chunk: int | None) -> list[Tensor]:
        hidden, weight, targets = _inputs()
        hidden.requires_grad_()
        weight.requires_grad_(trained == "head")
        if chunk is None:
            logp = torch.log_softmax(2 * torch.tanh(hidden @ weight.T / 2) / 0.7, -1)
            logprobs, entropy = logp[torch.arange(R), targets], torch.distributions.Categorical(logits=logp).entropy()
        else:
            logprobs, maybe = token_logprobs(
                hidden, weight, targets, temperature=0.7, softcap=2.0, chunk=chunk, entropy=entropies
            )
            assert (maybe is not None) == entropies
            entropy = torch.zeros(R) if maybe is None else maybe
        scale = torch.arange(1.0, R + 1)
        loss = (scale * logprobs + entropies * scale**2 * entropy).sum()
        gradients = torch.autograd.grad(loss, [hidden, weight] if trained == "head" else [hidden])
        return [logprobs.detach(), entropies * entropy.detach(), *gradients]

    for ours, dense in zip(run(chunk), run(None), strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_master_takes_the_gradient_of_the_weight_on_top_of_its_own(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs_module, "PRODUCT", 4 * D)  # slices of four of the eleven rows
    hidden, weight, targets = _inputs()
    hidden, weight, master = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), weight.clone()
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk=3)
    d_hidden, d_weight = torch.autograd.grad(logprobs.sum(), [hidden, weight])
    for times in (1, 2):
        token_logprobs(hidden, weight, targets, chunk=3, master=master)[0].sum().backward()
        assert weight.grad is None and master.grad is not None and hidden.grad is not None
        near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(master.grad, times * d_weight.float(), **near)
        torch.testing.assert_close(hidden.grad, times * d_hidden)


@pytest.mark.parametrize("rows", [0, 4])
def test_no_more_than_a_fixed_part_of_the_logits_is_kept_for_backward(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs_module, "KEPT", rows * V)
    hidden, weight, targets = _inputs()
    hidden.requires_grad_()
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(hidden, weight, targets, chunk=2)
        token_logprobs(hidden, weight.requires_grad_(), targets, chunk=2, entropy=True)
        exact_kl(hidden, weight, hidden, weight.detach(), chunk=2)
        assert not [shape for shape in kept if V in shape and shape != weight.shape]
        token_logprobs(hidden, weight, targets, chunk=2)
    assert sum(shape[0] for shape in kept if V in shape and shape != weight.shape) == rows


def test_bfloat16_products_give_float32_results_and_gradients_in_the_weights_own_dtype() -> None:
    hidden, weight, targets = _inputs()
    weight.requires_grad_()
    logprobs, _ = token_logprobs(hidden.bfloat16(), weight, targets, chunk=2)
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[torch.arange(R), targets])
    logprobs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_no_tokens_read() -> None:
    hidden, weight, targets = _inputs()
    logprobs, entropy = token_logprobs(hidden[:0], weight, targets[:0], entropy=True)
    assert entropy is not None
    assert logprobs.shape == entropy.shape == exact_kl(hidden[:0], weight, hidden[:0], weight).shape == (0,)


def test_temperature_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        token_logprobs(*_inputs(), temperature=0)


def test_exact_kl_by_hand() -> None:
    one = torch.ones(1, 1)
    p, q = torch.tensor([[0.5], [0.25], [0.25]]), torch.tensor([[0.25], [0.25], [0.5]])
    kl = exact_kl(one, p.log(), one, q.log())
    assert kl.item() == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))


def test_exact_kl_is_zero_on_itself_positive_otherwise_and_does_not_depend_on_chunks() -> None:
    hidden_p, weight_p, _ = _inputs(0)
    hidden_q, weight_q, _ = _inputs(1, width=D + 2)
    assert exact_kl(hidden_p, weight_p, hidden_p, weight_p).tolist() == [0.0] * R
    results = []
    for chunk in (2, 1024):
        for tensor in (hidden_p, weight_p, hidden_q, weight_q):
            tensor.requires_grad_()
        kl = exact_kl(hidden_p, weight_p, hidden_q, weight_q, temperature=0.7, softcap=3.0, chunk=chunk)
        assert (kl > 0).all()
        results.append([kl, *torch.autograd.grad(kl.square().sum(), [hidden_p, weight_p, hidden_q, weight_q])])
    for few, one in zip(*results, strict=True):
        torch.testing.assert_close(few, one, atol=1e-4, rtol=1e-5)


def test_exact_kl_is_cross_entropy_minus_entropy() -> None:
    hidden, weight_p, targets = _inputs(0)
    _, weight_q, _ = _inputs(1)
    _, entropy = token_logprobs(hidden, weight_p, targets, entropy=True)
    p, logq = torch.softmax(hidden @ weight_p.T, -1), torch.log_softmax(hidden @ weight_q.T, -1)
    assert entropy is not None
    torch.testing.assert_close(exact_kl(hidden, weight_p, hidden, weight_q), -(p * logq).sum(-1) - entropy)
