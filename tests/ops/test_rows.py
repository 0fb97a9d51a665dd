import pytest
import torch
from torch import Tensor

from prefloop.ops import rows
from prefloop.ops.rows import LANES, PART, compare_rows, read_rows

SIZES = [1, 3, LANES, LANES + 1, PART - 1, PART + 5, 3 * PART]


def _logits(rows: int, size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (4 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_one_pass_reads_what_torchs_passes_do(size: int, dtype: torch.dtype) -> None:
    logits, targets = _logits(5, size, dtype), torch.arange(5) % size
    logp = torch.log_softmax(logits.double() / 0.7, -1)
    chosen, entropy = read_rows(logits.clone(), targets, 0.7)
    torch.testing.assert_close(chosen, logp[torch.arange(5), targets].float(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(-1).float(), rtol=1e-5, atol=2e-6)
    apart = logits.clone()
    again, _ = read_rows(apart, targets, 0.7, apart=True)
    wanted = logp.exp() - torch.nn.functional.one_hot(targets, size)
    near = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(apart.double(), wanted, rtol=near, atol=near / 10)
    assert torch.equal(again, chosen) and apart.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_two_models_are_compared_in_one_pass(size: int, dtype: torch.dtype) -> None:
    p, q, targets = _logits(5, size, dtype), _logits(5, size, dtype, 1), torch.arange(5) % size
    logp, logq = (torch.log_softmax(x.double() / 0.7, -1) for x in (p, q))
    chosen_p, chosen_q, entropy, kl = compare_rows(p, q, targets, 0.7)
    for found, alone in ((chosen_p, p), (chosen_q, q)):
        torch.testing.assert_close(found, read_rows(alone.clone(), targets, 0.7)[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(-1).float(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(kl, (logp.exp() * (logp - logq)).sum(-1).float(), rtol=1e-5, atol=2e-6)
    assert compare_rows(p, p, targets, 0.7)[3].tolist() == [0] * 5


def test_a_model_that_is_nearly_the_other_has_a_small_exact_kl() -> None:
    p = _logits(4, 5000, torch.float32)
    q = p + 1e-3 * _logits(4, 5000, torch.float32, 1)
    logp, logq = (torch.log_softmax(x.double(), -1) for x in (p, q))
    kl = compare_rows(p, q, torch.zeros(4, dtype=torch.long), 1.0)[3]
    torch.testing.assert_close(kl.double(), (logp.exp() * (logp - logq)).sum(-1), rtol=0.05, atol=2e-7)


def test_what_is_no_number_is_never_hidden() -> None:
    broken = _logits(3, 50, torch.float32)
    broken[0, 7], broken[1, 7] = torch.nan, torch.inf
    chosen, _ = read_rows(broken.clone(), torch.tensor([3, 3, 3]), 1.0)
    assert not chosen[:2].isfinite().any() and chosen[2].isfinite()
    compared = compare_rows(broken, broken.clone(), torch.tensor([3, 3, 3]), 1.0)
    assert not compared[0, :2].isfinite().any() and compared[:, 2].isfinite().all()


@pytest.mark.parametrize("target", [-100, 7])
def test_what_is_no_token_is_refused(target: int) -> None:
    logits, targets = _logits(2, 7, torch.float32), torch.tensor([0, target])
    with pytest.raises(ValueError, match="but tokens from 0 to 6"):
        read_rows(logits, targets, 1.0)
    with pytest.raises(ValueError, match=str(target)):
        compare_rows(logits, logits, targets, 1.0)


def test_without_torchs_threads_torch_reads_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows.suits(torch.ones(1)) == (rows.omp("GOMP_parallel") is not None)
    monkeypatch.setattr(rows, "omp", lambda name: None)
    assert not rows.suits(torch.ones(1))
