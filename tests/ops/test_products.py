"""Products by panels against the same in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefloop.engine.decode import Decoder
from prefloop.models.tiny import tiny_model
from prefloop.ops import products
from prefloop.ops.products import BLOCK, COLUMNS, Panels, Then, suits

ROUNDING = 2.0**-8  # of one number to bf16, relative
here = pytest.mark.skipif(
    not suits(torch.zeros(COLUMNS, 2).bfloat16()), reason="this CPU multiplies no pairs of bf16, or has AMX"
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(made: Tensor, wanted: Tensor, scale: Tensor) -> None:
    """To a rounding of bf16, and sums in fp32 to what their terms allow."""
    error = (made.double() - wanted).abs()
    assert torch.all(error <= ROUNDING * wanted.abs() + 1e-5 * scale)


@here
@pytest.mark.parametrize("rows", [*range(1, 15), 31, 32, BLOCK - 1, BLOCK, BLOCK + 13, 3 * BLOCK + 5])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 32), (46, 64), (576, 96)])
def test_products_of_any_number_of_rows(rows: int, inputs: int, outputs: int) -> None:
    x, weight = random(rows, inputs), random(outputs, inputs, seed=1)
    wanted = x.double() @ weight.double().T
    close(Panels(weight)(x), wanted, x.double().abs() @ weight.double().abs().T)


@here
@pytest.mark.parametrize("then", ["none", "swish", "mul", "add"])
@pytest.mark.parametrize("biased", [False, True])
def test_what_follows_a_product(then: Then, biased: bool) -> None:
    x, weight, other = random(21, 64), random(96, 64, seed=1), random(21, 96, seed=2)
    bias = random(96, seed=3) if biased else None
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    changes = {
        "none": wanted,
        "swish": torch.nn.functional.silu(wanted),
        "mul": wanted * other.double(),
        "add": wanted + other.double(),
    }
    made = Panels(weight, bias)(x, then, other if then in ("mul", "add") else None)
    close(made, changes[then], (x.double().abs() @ weight.double().abs().T + 1) * (1 + other.double().abs()))
    assert not torch.allclose(made.double(), next(w for name, w in changes.items() if name != then), rtol=0.05)


@here
def test_swish_at_its_ends() -> None:
    """Each input alone, through the identity."""
    numbers = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0, 1e30, -1e30, float("inf"), float("nan")])
    x = torch.zeros(len(numbers), 32)
    x[:, 0] = numbers
    made = Panels(torch.eye(32).bfloat16())(x.bfloat16(), "swish")[:, 0].float()
    assert torch.equal(made[[0, 1, 4, 6, 8]], numbers[[0, 1, 4, 6, 8]].bfloat16().float())
    assert made[2:4].abs().max() < 1e-29 and made[5].abs() < 1e-30 and made[7].abs() < 1e-7 and made[9].isnan()


@here
def test_what_does_not_fit_is_refused() -> None:
    panels, x, wide = Panels(random(32, 6)), random(4, 6), random(4, 32)
    for call in (
        lambda: panels(x.float()),
        lambda: panels(x[:, :4]),
        lambda: panels(x, "mul"),
        lambda: panels(x, "none", wide),
        lambda: panels(x, "add", wide[:3]),
        lambda: panels(x, "add", wide.float()),
    ):
        with pytest.raises(AssertionError):
            call()
    assert panels(x[:0]).shape == (0, 32)


@here
def test_rows_that_are_not_contiguous() -> None:
    x, weight, other = random(64, 9).T, random(32, 64, seed=1), random(32, 9, seed=2).T
    assert torch.equal(Panels(weight)(x, "add", other), Panels(weight)(x.contiguous(), "add", other.contiguous()))


@here
def test_one_thread_or_two_make_the_same() -> None:
    x, panels, before = random(40, 128), Panels(random(256, 128, seed=1)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = panels(x)
        torch.set_num_threads(2)
        assert torch.equal(panels(x), alone)
    finally:
        torch.set_num_threads(before)


def test_who_they_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "omp", lambda name: print)
    weight, answers = torch.zeros(64, 6).bfloat16(), []
    try:
        for features in ("+avx2,+avx512bf16,-amx-bf16", "+avx512bf16,+amx-bf16", "+avx512f,-avx512bf16", ""):
            monkeypatch.setattr(products.config, "CPU_FEATURES", features)
            products._here.cache_clear()
            answers.append((suits(weight), suits(weight.float()), suits(weight[:48]), suits(weight[:, :5])))
        monkeypatch.setattr(products, "omp", lambda name: None)
        monkeypatch.setattr(products.config, "CPU_FEATURES", "+avx512bf16")
        products._here.cache_clear()
        answers.append((suits(weight),) * 4)
    finally:
        products._here.cache_clear()
    assert answers == [(True, False, False, False)] + [(False,) * 4] * 4


@here
def test_a_decoder_uses_them_where_they_fit() -> None:
    decoder = Decoder(tiny_model().bfloat16())
    products = [product for layer in decoder.layers for product in layer]
    assert [p.panels is not None for p in products] == [True] * len(products)
    assert all(p.panels is None for layer in Decoder(tiny_model()).layers for p in layer)
