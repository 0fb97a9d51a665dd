"""The fused norm against the written-out formula: values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prefloop.models.norms import KINDS, fuse_norms
from prefloop.models.tiny import FAMILIES, tiny_model


def written_out(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def fused(width: int, dtype: torch.dtype) -> nn.Module:
    model = tiny_model(width=width)
    norm = model.get_submodule("model.norm")
    norm.weight.data = (torch.arange(width) % 5 - 1.5).to(dtype)
    fuse_norms(model)
    return norm


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 300.0]), rows=st.integers(1, 9))
def test_it_is_the_formula(seed: int, scale: float, rows: int) -> None:
    norm = fused(32, torch.float32)
    x = scale * torch.randn(2, rows, 32, generator=torch.Generator().manual_seed(seed)) + scale
    grad = torch.randn(2, rows, 32, generator=torch.Generator().manual_seed(seed + 1))
    assert isinstance(norm.weight, nn.Parameter)
    ours = [x.clone().requires_grad_(), norm.weight]
    theirs = [x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()]
    wanted = written_out(theirs[0], theirs[1], 1e-6)
    found = norm(ours[0])
    mine = [found.detach(), *torch.autograd.grad(found, ours, grad)]
    true = [wanted.detach(), *torch.autograd.grad(wanted, theirs, grad.double())]
    for one, other in zip(mine, true, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_in_bf16_its_gradients_are_as_good_as_transformers_own() -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(300, 64, generator=generator).bfloat16() for _ in range(2))
    ours, plain = fused(64, torch.bfloat16), tiny_model(width=64).get_submodule("model.norm")
    plain.weight.data = ours.weight.data
    exact = [x.double().requires_grad_(), plain.weight.detach().double().requires_grad_()]
    wanted = torch.autograd.grad(written_out(exact[0], exact[1], 1e-6), exact, grad.double())

    def errors(norm: nn.Module) -> list[float]:
        assert isinstance(norm.weight, nn.Parameter)
        read = [x.clone().requires_grad_(), norm.weight]
        found = torch.autograd.grad(norm(read[0]), read, grad)
        return [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]

    assert all(mine <= 1.2 * theirs for mine, theirs in zip(errors(ours), errors(plain), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_other_kinds_stay_as_they_are(family: str) -> None:
    model = tiny_model(family=family)
    before = {name: type(module) for name, module in model.named_modules()}
    fuse_norms(model)
    fuse_norms(model)
    for name, module in model.named_modules():
        assert (type(module) is before[name]) == (before[name].__name__ not in KINDS)
        assert isinstance(module, before[name])
