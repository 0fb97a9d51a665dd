"""Direct losses on forests: what each reads of a tree, by hand, however a batch is split, and as TRL has them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefloop.configs.direct import KNOBS, REFERENCE_FREE, DirectConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.forest import Totals, build_forest
from prefloop.engine.build import build_learner
from prefloop.engine.direct_losses import DIRECT
from prefloop.engine.outputs import LossOut, Outputs
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import Node, Pair, PrefloopError, Ranking, Tree

REFERENCE = "reference_logprobs"


def answer(*tokens: int, **fields: tuple[float, ...]) -> Node:
    return Node(parent=0, tokens=tokens, author="policy", fields={"weight": (1.0,) * len(tokens), **fields})


def tree(*answers: Node, pairs: tuple[Pair, ...] = (), rankings: tuple[Ranking, ...] = ()) -> Tree:
    nodes = (Node(parent=-1, tokens=(1, 2, 3), author="prompt"), *answers)
    return Tree(id="t", nodes=nodes, pairs=pairs, rankings=rankings)


def objective(loss: str, **keys: Any) -> tuple[str, dict[str, Any]]:
    return DirectConfig(out="o", loss=loss, **keys).objective


def loss_of(made: Sequence[Tree] | Tree, logprobs: Tensor | Sequence[float], loss: str, **keys: Any) -> LossOut:
    name, params = objective(loss, **keys)
    trees = [made] if isinstance(made, Tree) else list(made)
    return DIRECT[name](Outputs(logprobs=torch.as_tensor(logprobs)), build_forest(trees), Totals.of(trees), **params)


def two(*pairs: Pair, reference: bool = True) -> Tree:
    """An answer of two tokens and one of one, reference log-probs -0.5, -0.5 and -2."""
    columns = [{REFERENCE: (-0.5, -0.5)}, {REFERENCE: (-2.0,)}] if reference else [{}, {}]
    return tree(answer(4, 5, **columns[0]), answer(6, **columns[1]), pairs=pairs or (Pair(a=1, b=2),))


def nls(x: float) -> float:
    return math.log1p(math.exp(-x))


def test_dpo_by_hand() -> None:
    """h = 0.5 ((-1 - 2 + 1) - (-3 + 2)): chosen summed over two tokens, less the reference's; the pair twice, once with
    target 0.25."""
    made = two(Pair(a=1, b=2), Pair(a=2, b=1, target=0.25))
    out = loss_of(made, [-1.0, -2.0, -3.0], "dpo", beta=0.5)
    h = 0.5 * ((-3.0 + 1.0) - (-3.0 + 2.0))
    assert float(out.loss) == pytest.approx((nls(h) + 0.25 * nls(-h) + 0.75 * nls(h)) / 2, rel=1e-6)
    found = {name: float(value) for name, value in out.metrics.items()}
    expected = {
        "logratio/chosen": (-2.0 + 0.25 * -1.0 + 0.75 * -2.0) / 2,
        "logratio/rejected": (-1.0 + 0.25 * -2.0 + 0.75 * -1.0) / 2,
        "logratio/token": (0.5 + 1.5 + 1.0) / 3,
        "logp/chosen": -3.0,
        "logp/rejected": -3.0,
        "margin/train": h * (1 + 0.5) / 2,
        "accuracy/train": 0.0,
        "loss/train": float(out.loss),
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_dpos_gradient_is_that_of_its_paper() -> None:
    """-beta sigmoid(-h) (grad log pi(chosen) - grad log pi(rejected)): equation 8's line of Rafailov et al. 2023."""
    made = tree(answer(4, 5, **{REFERENCE: (-1.0, -1.0)}), answer(6, **{REFERENCE: (-1.0,)}), pairs=(Pair(a=1, b=2),))
    logprobs = torch.tensor([-0.5, -1.5, -0.25], requires_grad=True)
    loss_of(made, logprobs, "dpo", beta=0.3).loss.backward()
    assert logprobs.grad is not None
    pull = 0.3 / (1 + math.exp(0.3 * (0.0 - 0.75)))
    assert logprobs.grad.tolist() == pytest.approx([-pull, -pull, pull], rel=1e-5)


# Log-probs -1, -2 and -3: sums -3 and -3, means -1.5 and -3, log-ratios -2 and -1, a token -1 and -1.
HAND: list[tuple[str, dict[str, float], float]] = [
    ("dpo", {"beta": 1.0, "label_smoothing": 0.25}, 0.75 * nls(-1) + 0.25 * nls(1)),
    ("dpo", {"beta": 1.0, "length_penalty": 0.25}, nls(-1 + 0.25)),
    ("dpo", {"beta": 1.0, "nll": 2.0}, nls(-1) + 2 * 1.5),
    ("dpo_norm", {"beta": 2.0}, nls(0)),
    ("robust", {"beta": 1.0, "label_smoothing": 0.25}, (0.75 * nls(-1) - 0.25 * nls(1)) / 0.5),
    ("ipo", {"beta": 0.25}, (-1 - 2) ** 2),
    ("ipo_norm", {"beta": 0.25}, (0 - 2) ** 2),
    ("hinge", {"beta": 0.5}, 1.5),
    ("slic", {"beta": 2.0, "nll": 0.5}, 1 + 0.5 * 1.5),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, nls(2 * 1.5 - 0.5)),
    ("cpo", {"beta": 2.0, "nll": 0.5}, nls(0) + 0.5 * 1.5),
    (
        "orpo",
        {"beta": 0.5},
        1.5 + 0.5 * nls(1.5 - math.log1p(-math.exp(-1.5)) + math.log1p(-math.exp(-3))),
    ),
    ("sppo", {"beta": 0.5}, (-2 - 1) ** 2 + (-1 + 1) ** 2),
    ("nca", {"beta": 1.0}, nls(-2) + 0.5 * nls(2) + 0.5 * nls(1)),
    ("apo_zero", {"beta": 1.0}, 1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(1))),
    ("apo_down", {"beta": 1.0}, 1 / (1 + math.exp(2)) + 1 / (1 + math.exp(-1))),
]


@pytest.mark.parametrize(("loss", "keys", "expected"), HAND, ids=[f"{row[0]}-{i}" for i, row in enumerate(HAND)])
def test_losses_by_hand(loss: str, keys: dict[str, float], expected: float) -> None:
    made = two(reference=loss not in REFERENCE_FREE)
    assert float(loss_of(made, [-1.0, -2.0, -3.0], loss, **keys).loss) == pytest.approx(expected, rel=1e-5)


def test_margins_are_taken_from_the_lead() -> None:
    made = two(Pair(a=1, b=2, margin=0.5))
    for loss, expected in (
        ("dpo", nls(-1.5)),
        ("hinge", 2.5),
        ("robust", (0.9 * nls(-1.5) - 0.1 * nls(1.5)) / 0.8),
    ):
        found = float(loss_of(made, [-1.0, -2.0, -3.0], loss, beta=1.0).loss)
        assert found == pytest.approx(expected, rel=1e-6)


def test_ranked_dpo_by_hand_and_of_two_as_dpo() -> None:
    """exp(beta log-ratio) = 1, 2, 4."""
    ranked = (Ranking(nodes=(3, 1, 2), ranks=(0, 1, 2)),)
    nodes = [answer(4 + i, **{REFERENCE: (-5.0,)}) for i in range(3)]
    pairs = (Pair(a=3, b=1), Pair(a=3, b=2), Pair(a=1, b=2))
    made = tree(*nodes, pairs=pairs, rankings=ranked)
    logprobs = [-5 + 10 * math.log(x) for x in (1, 2, 4)]
    out = loss_of(made, logprobs, "dpo_ranked", beta=0.1)
    assert float(out.loss) == pytest.approx(-math.log(4 / 7 * 1 / 3), rel=1e-5)
    assert float(out.metrics["accuracy/train"]) == pytest.approx(2 / 3)
    pair = tree(*nodes[:2], pairs=(Pair(a=1, b=2),), rankings=(Ranking(nodes=(1, 2), ranks=(0, 1)),))
    values = [float(loss_of(pair, [-4.0, -7.0], name).loss) for name in ("dpo", "dpo_ranked")]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_kto_by_hand() -> None:
    """Log-ratios -2 of a good and -1 of two bad answers, z0 = 1."""
    good, bad = {REFERENCE: (-0.5, -0.5), "good": (1.0, 1.0)}, {REFERENCE: (-2.0,), "good": (0.0,)}
    made = tree(answer(4, 5, **good), answer(6, **bad), answer(7, **bad))
    name, params = objective("kto", beta=0.5, desirable=2.0)
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -3.0], requires_grad=True)
    about = Outputs(logprobs=logprobs), build_forest([made]), Totals.of([made])
    out = DIRECT[name](*about, **params, baseline=1.0, counts=(1, 2))
    v_good, v_bad = 1 / (1 + math.exp(0.5 * 3)), 1 / (1 + math.exp(-0.5 * 2))
    assert out.loss.item() == pytest.approx((2 * (1 - v_good) + 2 * (1 - v_bad)) / 3, rel=1e-6)
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    pulls = [-2 * 0.5 * v_good * (1 - v_good) / 3] * 2 + [0.5 * v_bad * (1 - v_bad) / 3] * 2
    assert logprobs.grad.tolist() == pytest.approx(pulls, rel=1e-5)
    found = {k: float(v) for k, v in out.metrics.items()}
    assert (found["logratio/chosen"], found["logratio/rejected"]) == (-2.0, -1.0)
    assert found["margin/train"] == -0.5 and found["accuracy/train"] == pytest.approx(2 / 3)


def test_a_weighted_sum_adds_losses_up() -> None:
    made = two()
    parts = {name: float(loss_of(made, [-1.0, -2.0, -3.0], name).loss) for name in ("dpo", "nca", "simpo")}
    out = loss_of(made, [-1.0, -2.0, -3.0], "dpo", also={"nca": 0.5})
    assert float(out.loss) == pytest.approx(parts["dpo"] + 0.5 * parts["nca"], rel=1e-6)
    assert float(out.metrics["loss/nca"]) == pytest.approx(parts["nca"], rel=1e-6)
    assert "logratio/chosen" in out.metrics


@pytest.mark.parametrize("loss", sorted(set(KNOBS) - REFERENCE_FREE - {"kto"}))
def test_a_loss_that_needs_a_reference_says_so(loss: str) -> None:
    with pytest.raises(PrefloopError, match="reads the field 'reference_logprobs'"):
        loss_of(two(reference=False), [-1.0, -2.0, -3.0], loss)


def varied() -> list[Tree]:
    """Trees of two and three answers of different lengths, with soft labels, weights and rankings."""
    trees = []
    for index in range(6):
        sizes = (index % 3 + 1, 2 * index % 5 + 1, 3)
        nodes = [
            answer(*range(10 + i, 10 + i + n), **{REFERENCE: (-5.0 - i,) * n, "good": (float(i % 2),) * n})
            for i, n in enumerate(sizes)
        ]
        pairs = (Pair(a=1, b=2, target=0.8), Pair(a=3, b=1, weight=0.5))
        trees.append(tree(*nodes, pairs=pairs, rankings=(Ranking(nodes=(2, 1, 3), ranks=(0, 1, 1), weight=2.0),)))
    return trees


@pytest.mark.parametrize("loss", [*KNOBS, "weighted"])
def test_gradients_do_not_depend_on_how_a_batch_is_split(loss: str) -> None:
    """Also where a tree is cut; of KTO z0 is of the whole batch, so that it is the same for every part."""
    name, params = objective("simpo", also={"dpo": 0.3}) if loss == "weighted" else objective(loss)
    params |= {"baseline": 0.7, "counts": (6, 12)} if loss == "kto" else {}
    found = []
    for budget in (1000, 12):
        source = LoadedModel(tiny_model(width=16), tiny_tokenizer(), "tiny", "")
        learner = build_learner(source, EngineConfig(dtype="fp32", threads=1, token_budget=budget), OptimConfig(lr=1.0))
        metrics = learner.forward_backward(varied(), name, params)
        found.append((metrics, [p.grad for p in learner.model.parameters() if p.grad is not None]))
    (whole, grads), (cut, others) = found
    assert cut == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert sum(float(g.norm()) for g in grads) > 0
    for grad, other in zip(grads, others, strict=True):
        assert (other - grad).norm() <= 1e-4 * grad.norm() + 1e-7


TRL = Path(sys.prefix).with_name(".venv-trl") / "bin" / "python"
THEIRS = """
import json, sys, types, warnings
warnings.simplefilter("ignore")
from collections import defaultdict
import torch
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

class Accelerator:
    device = torch.device("cpu")
    num_processes = 1
    gather = gather_for_metrics = staticmethod(lambda x: x)

def namespace(**own):
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=True), accelerator=Accelerator(), aux_loss_enabled=False,
        precompute_ref_logps=True, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        args=types.SimpleNamespace(discopop_tau=0.05), **own)

def padded(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)

found = []
for case in json.load(sys.stdin):
    rows = case["chosen"] + case["rejected"]
    count, longest = len(case["chosen"]), max(map(len, rows))
    given = padded(rows).requires_grad_()
    mask = padded([[1] * len(r) for r in rows])
    logps = given * mask
    whole = torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), mask], 1)
    zeros = torch.zeros_like(given)
    def model(**_):
        return types.SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(),
                                     log_sum_sq_probs=zeros, aux_loss=None)
    keys, kind = case["keys"], case["trainer"]
    inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole), "completion_mask": whole}
    if kind == "dpo":
        trainer = namespace(ld_alpha=None, use_weighting=False, **keys)
        inputs |= {"ref_chosen_logps": torch.tensor(case["ref"][:count]),
                   "ref_rejected_logps": torch.tensor(case["ref"][count:])}
        loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    elif kind == "kto":
        trainer = namespace(calculate_KL=True, loss_type="kto",
                            _compute_kl_logps=lambda *_: torch.tensor(case["mismatched"]), **keys)
        inputs |= {"label": torch.tensor([True] * count + [False] * (len(rows) - count)),
                   "ref_logps": torch.tensor(case["ref"]), "ref_KL_logps": torch.tensor(case["ref_mismatched"])}
        loss = KTOTrainer._compute_loss(trainer, model, inputs, False)
    else:
        own = {"cpo": CPOTrainer, "orpo": ORPOTrainer}[kind]
        sums = logps.sum(1) / (mask.sum(1) if case["mean"] else 1)
        nll = -logps[:count][mask[:count].bool()].mean()
        trainer = namespace(concatenated_forward=lambda m, b: (sums[:count], sums[count:], zeros, zeros, nll), **keys)
        for name in ("cpo_loss", "odds_ratio_loss"):
            if hasattr(own, name):
                setattr(trainer, name, types.MethodType(getattr(own, name), trainer))
        loss, _ = own.get_batch_loss_metrics(trainer, None, {})
    loss.backward()
    found.append([loss.item(), [g[:len(r)].tolist() for g, r in zip(given.grad, rows)]])
print(json.dumps(found))
"""
DPO = {"beta": 0.3, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5}
CPO = {"beta": 0.3, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}


def theirs(*types: str, weights: Sequence[float] = (1.0,), **keys: Any) -> dict[str, Any]:
    return {"trainer": "dpo", "keys": {**DPO, "loss_types": types, "loss_weights": list(weights), **keys}}


def cpo(kind: str, **keys: Any) -> dict[str, Any]:
    return {"trainer": "cpo", "mean": kind == "simpo", "keys": {**CPO, "loss_type": kind, **keys}}


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("dpo", {}, theirs("sigmoid")),
    ("robust", {"label_smoothing": 0.2}, theirs("robust", label_smoothing=0.2)),
    ("hinge", {}, theirs("hinge")),
    ("ipo_norm", {}, theirs("ipo")),
    ("dpo_norm", {}, theirs("sigmoid_norm")),
    ("exo", {"label_smoothing": 0.01}, theirs("exo_pair", label_smoothing=0.01)),
    ("nca", {}, theirs("nca_pair")),
    ("apo_zero", {}, theirs("apo_zero")),
    ("apo_down", {}, theirs("apo_down")),
    ("sppo", {}, theirs("sppo_hard")),
    ("dpo", {"nll": 0.7}, theirs("sigmoid", "sft", weights=(1.0, 0.7))),
    ("dpo", {"also": {"nca": 0.4, "apo_zero": 0.2}}, theirs("sigmoid", "nca_pair", "apo_zero", weights=(1, 0.4, 0.2))),
    *(
        (loss, {"divergence": ours, **more, **smooth}, theirs(kind, f_divergence_type=their, **smooth, **coef))
        for loss, kind, smooth in (
            ("dpo", "sigmoid", {}),
            ("hinge", "hinge", {}),
            ("robust", "robust", {"label_smoothing": 0.2}),
            ("exo", "exo_pair", {"label_smoothing": 0.01}),
        )
        for ours, their, more, coef in (
            ("forward_kl", "forward_kl", {}, {}),
            ("jensen_shannon", "js_divergence", {}, {}),
            ("alpha", "alpha_divergence", {"divergence_alpha": 0.7}, {"f_alpha_divergence_coef": 0.3}),
        )
    ),
    ("cpo", {"nll": 0.0}, cpo("sigmoid")),
    ("cpo", {"nll": 0.7, "label_smoothing": 0.1}, cpo("sigmoid", cpo_alpha=0.7, label_smoothing=0.1)),
    ("slic", {"nll": 0.0}, cpo("hinge")),
    ("simpo", {"gamma": 0.5}, cpo("simpo")),
    ("orpo", {}, {"trainer": "orpo", "mean": True, "keys": {"beta": 0.3}}),
    *(
        (
            "kto",
            {"desirable": 1.3, "undesirable": 0.7},
            {
                "trainer": "kto",
                "shift": shift,
                "keys": {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7},
            },
        )
        for shift in (1.0, -3.0)
    ),
]


@pytest.mark.skipif(not TRL.exists(), reason=f"no TRL to compare with at {TRL}: `make bench` installs it")
def test_losses_and_gradients_are_those_of_trl() -> None:
    """On random log-probs; chosen answers of one length where there is a likelihood, which TRL averages over tokens."""
    sent, ours = [], []
    for seed, (loss, keys, case) in enumerate(CASES):
        rng = np.random.default_rng(seed)
        even = loss == "orpo" or keys.get("nll")
        sizes = [*([3] * 4 if even else [2, 5, 3, 1]), 4, 2, 6, 3]
        rows = [(-rng.exponential(1.0, n)).astype(np.float32) for n in sizes]
        reference = [(-rng.exponential(1.0, n)).astype(np.float32) for n in sizes]
        mismatched, ref_mismatched = (-rng.exponential(5.0, (2, 8))).astype(np.float32)
        mismatched += np.float32(case.get("shift", 0))
        case = {**case, "chosen": [r.tolist() for r in rows[:4]], "rejected": [r.tolist() for r in rows[4:]]}
        case |= {"ref": [float(r.sum()) for r in reference]}
        case |= {"mismatched": mismatched.tolist(), "ref_mismatched": ref_mismatched.tolist()}
        sent.append(case)
        trees = []
        for i in range(4):
            columns = [{REFERENCE: tuple(reference[k].tolist())} for k in (i, i + 4)]
            columns = [
                {**c, "good": (float(g),) * sizes[k]} for c, g, k in zip(columns, (1, 0), (i, i + 4), strict=True)
            ]
            branches = [answer(*range(9, 9 + sizes[k]), **c) for k, c in zip((i, i + 4), columns, strict=True)]
            trees.append(tree(*branches, pairs=(Pair(a=1, b=2),)))
        logprobs = torch.tensor(np.concatenate([rows[k] for i in range(4) for k in (i, i + 4)]), requires_grad=True)
        name, params = objective(loss, beta=0.3, **keys)
        if loss == "kto":
            z0 = max(0.0, float((mismatched - ref_mismatched).mean()))
            params |= {"baseline": z0, "counts": (4, 4)}
        out = DIRECT[name](Outputs(logprobs=logprobs), build_forest(trees), Totals.of(trees), **params)
        out.loss.backward()  # type: ignore[no-untyped-call]
        assert logprobs.grad is not None
        grads = logprobs.grad.split([sizes[k] for i in range(4) for k in (i, i + 4)])
        ours.append([out.loss.item(), *torch.cat([*grads[::2], *grads[1::2]]).tolist()])
    done = subprocess.run([TRL, "-c", THEIRS], input=json.dumps(sent), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (loss, keys, _), mine, (value, grads) in zip(CASES, ours, json.loads(done.stdout), strict=True):
        other = [value, *(g for row in grads for g in row)]
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=1e-6, err_msg=f"{loss} {keys}")
        assert sum(abs(g) for g in other[1:]) > 1e-3
