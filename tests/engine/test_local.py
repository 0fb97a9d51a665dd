"""The reference engine against plain torch: updates are AdamW's, nothing small is lost, runs resume exactly."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.data.forest import build_forest, pack
from prefloop.engine.build import build_learner
from prefloop.engine.local import LocalLearner, LocalScorer, Pooling
from prefloop.models.checkpoint import load_training
from prefloop.models.heads import reward_head, value_head
from prefloop.models.layers import layer_of, layers_of
from prefloop.models.load import LoadedModel, load_model
from prefloop.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from prefloop.types import Checkpoint, Node, Pair, PrefloopError, Ranking, Tree

TOKENIZER = tiny_tokenizer()
ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=60)
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.01, eps=1e-4)
RECORD = Checkpoint(path="", kind="policy", step=0, parent="tiny", config_hash="")


def loaded(dtype: torch.dtype = torch.float32, seed: int = 0, width: int = 16) -> LoadedModel:
    model: Any = tiny_model(seed, width=width)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return LoadedModel(model, TOKENIZER, "tiny", "")


def make_trees(seed: int = 0, count: int = 6) -> list[Tree]:
    """Prompts with two answers each; of the second's tokens only some are read."""
    chance = random.Random(seed)
    trees = []
    for index in range(count):
        prompt, a, b = ([chance.randrange(259) for _ in range(chance.randint(2, 12))] for _ in range(3))
        weights = tuple(chance.choice((0.0, 1.0)) for _ in b[1:])
        nodes = (
            Node(parent=-1, tokens=tuple(prompt), author="prompt"),
            Node(parent=0, tokens=tuple(a), author="policy", fields={"weight": (1.0,) * len(a)}),
            Node(parent=0, tokens=tuple(b), author="policy", fields={"weight": (1.0, *weights)}),
        )
        trees.append(Tree(id=str(index), nodes=nodes))
    return trees


def make_pairs() -> list[Tree]:
    """Small trees with every column that a loss may read, and a pair each."""
    chance, made = random.Random(2), []
    names = "old_logprobs", "sampled_logprobs", "reference_logprobs", "advantages", "old_values", "returns"
    for tree in make_trees(count=4):
        nodes = [tree.nodes[0]]
        for node in tree.nodes[1:]:
            columns = {name: tuple(chance.uniform(-3, 0) for _ in node.tokens) for name in names}
            nodes.append(dataclasses.replace(node, fields={**node.fields, **columns}))
        rankings = (Ranking(nodes=(2, 1), ranks=(0, 1), weight=0.5),)
        made.append(dataclasses.replace(tree, nodes=tuple(nodes), pairs=(Pair(a=1, b=2),), rankings=rankings))
    return made


def plain_logits(model: Any, tree: Tree, node: int) -> tuple[Tensor, Tensor]:
    """Logits [L, V] that predict the node's tokens [L], by transformers' eager attention."""
    root = tree.nodes[0].tokens
    tokens = torch.tensor([*root, *tree.nodes[node].tokens])
    out = model(input_ids=tokens[None], use_cache=False).logits[0]
    return out[len(root) - 1 : -1], tokens[len(root) :]


def eager_copy(model: Any) -> Any:
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


def plain_loss(model: Any, trees: list[Tree]) -> Tensor:
    total, count = torch.zeros(()), 0.0
    for tree in trees:
        for node in (1, 2):
            logits, tokens = plain_logits(model, tree, node)
            weight = torch.tensor(tree.nodes[node].fields["weight"])
            total = total + (torch.nn.functional.cross_entropy(logits, tokens, reduction="none") * weight).sum()
            count += float(weight.sum())
    return total / count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_sft_lowers_the_loss(dtype: torch.dtype) -> None:
    learner = build_learner(loaded(dtype), ENGINE, OPTIM)
    history = []
    for _ in range(12):
        history.append(learner.forward_backward(make_trees(), "sft", {})["loss/train"])
        learner.optim_step(1e-2, 1e-2)
    assert history[-1] < 0.6 * history[0]
    assert learner.version == learner.publish().version == 12


def test_updates_are_those_of_adamw_on_the_plain_model() -> None:
    trees, source = make_trees(), loaded()
    plain = eager_copy(source.model)
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=0.01)
    learner = build_learner(source, ENGINE, OPTIM)
    assert len(pack(trees, ENGINE.token_budget)) > 1
    for _ in range(3):
        metrics = learner.forward_backward(trees, "sft", {})
        loss = plain_loss(plain, trees)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), OPTIM.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        metrics |= learner.optim_step(3e-3, 1e-2)
        assert metrics["loss/train"] == pytest.approx(float(loss.detach()), rel=1e-4)
        assert metrics["optim/grad_norm"] == pytest.approx(float(norm), rel=1e-3)
        assert norm > OPTIM.max_grad_norm
    for found, wanted, start in zip(source.model.parameters(), plain.parameters(), before, strict=True):
        assert (found - wanted).norm() < 1e-3 * (wanted - start).norm()


def test_many_small_gradients_add_up_in_fp32() -> None:
    """In bf16 a sum of equal numbers stops growing at 256 of them, and is coarse long before."""
    (tree,) = make_trees(count=1)
    one = LocalLearner(loaded(torch.bfloat16), optim=OPTIM, token_budget=40)
    one.forward_backward([tree], "sft", {})
    many = LocalLearner(loaded(torch.bfloat16), optim=OPTIM, token_budget=40)
    for _ in range(60):
        many.forward_backward([tree], "sft", {})
    assert all(weight.grad is None for weight in many.weights)
    for few, sum_ in zip(one.masters, many.masters, strict=True):
        assert few.grad is not None and sum_.grad is not None and sum_.grad.dtype == torch.float32
        torch.testing.assert_close(sum_.grad, 60 * few.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
def test_many_tiny_updates_are_not_lost_in_bf16(lora: LoraConfig | None) -> None:
    learner = build_learner(loaded(torch.bfloat16), ENGINE, OptimConfig(lr=1e-5), lora=lora)
    first = [weight.detach().float().clone() for weight in learner.weights]
    for _ in range(200):
        for master in learner.masters:
            master.grad = torch.ones_like(master)
        learner.optim_step(1e-5, 1e-5)
    for weight, master, start in zip(learner.weights, learner.masters, first, strict=True):
        torch.testing.assert_close(master, start - 200 * 1e-5, rtol=0, atol=5e-6)
        assert torch.equal(weight, master.bfloat16())
    assert all((w.float() != s).float().mean() > 0.5 for w, s in zip(learner.weights, first, strict=True) if w.ndim > 1)


@pytest.mark.parametrize("last_layers", [None, 1])
def test_the_reference_of_an_adapter_is_its_base_exactly(last_layers: int | None) -> None:
    trees = make_trees()
    base = LocalScorer(loaded(), token_budget=60).forward(trees, {"logprobs"})
    optim = OPTIM.model_copy(update={"last_layers": last_layers})
    learner = build_learner(loaded(), ENGINE, optim, lora=LoraConfig(rank=4, alpha=8))
    start = learner.forward(trees, {"logprobs", "exact_kl"}, reference="adapter-off")
    assert all(not divergence.any() for reading in start for divergence in reading.exact_kl.values())
    for _ in range(3):
        learner.forward_backward(trees, "sft", {})
        learner.optim_step(1e-2, 1e-2)
    after = learner.forward(trees, {"logprobs", "exact_kl"}, reference="adapter-off")
    for reading, plain in zip(after, base, strict=True):
        for node in (1, 2):
            assert np.array_equal(reading.reference_logprobs[node], plain.logprobs[node])
            assert np.abs(reading.logprobs[node] - plain.logprobs[node]).max() > 1e-3
            assert reading.exact_kl[node].sum() > 1e-4


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2"}))  # which keeps its layers under another name
def test_layers_below_all_adapters_run_once_a_rollout(family: str) -> None:
    def learn(share: bool) -> tuple[list[int], dict[str, float], list[Tensor]]:
        model: Any = tiny_model(0, layers=4, width=16, family=family)
        source = LoadedModel(model, TOKENIZER, "tiny", "")
        optim = OPTIM.model_copy(update={"last_layers": 2})
        learner = build_learner(source, ENGINE, optim, lora=LoraConfig(rank=4, alpha=8))
        runs = [0] * 4
        for place, layer in enumerate(model.get_decoder().layers):
            layer.mlp.register_forward_hook(lambda *_, place=place: runs.__setitem__(place, runs[place] + 1))
        for step in range(2):
            learner.publish()
            if share:
                learner.forward(make_trees(step), {"logprobs", "exact_kl"}, reference="adapter-off")
            metrics = learner.forward_backward(make_trees(step), "sft", {})
            learner.optim_step(1e-2, 1e-2)
        return runs, metrics, learner.masters

    (plain, metrics, weights), (shared, same, equal) = learn(False), learn(True)
    assert shared == [*plain[:2], *(3 * run for run in plain[2:])]
    assert same == metrics and all(torch.equal(a, b) for a, b in zip(weights, equal, strict=True))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
@pytest.mark.parametrize("budget", [60, 4096])
def test_an_update_goes_on_from_the_pass_that_was_read(budget: int, lora: LoraConfig | None) -> None:
    """Where one forest holds the trees; and only until the weights or the trees change."""

    def learn(learned: bool, change: str = "") -> tuple[int, list[Tensor]]:
        learner = build_learner(loaded(), ENGINE.model_copy(update={"token_budget": budget}), OPTIM, lora=lora)
        reference = "adapter-off" if lora else LocalScorer(loaded(seed=1), token_budget=budget)
        learner.forward_backward(make_trees(1), "sft", {})
        learner.forward(make_trees(), {"logprobs", "entropy"}, reference=reference, learned=learned)
        assert (learner.kept is not None) == (learned and budget == 4096)
        if change == "weights":
            learner.optim_step(1e-2, 1e-2)
        runs = [0]
        layers_of(learner.trunk)[-1].mlp.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
        learner.forward_backward(make_trees(2 if change == "trees" else 0), "sft", {})
        assert learner.kept is None
        return runs[0], [master.grad for master in learner.masters if master.grad is not None]

    for change in ("", "weights", "trees"):
        (plain, gradients), (runs, same) = learn(False, change), learn(True, change)
        assert runs == (0 if budget == 4096 and not change else plain) and plain > 0
        assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_run_again_in_the_backward_pass_give_the_same_gradients(family: str, lora: LoraConfig | None) -> None:
    def learn(recompute: bool) -> tuple[int, list[Tensor]]:
        source = LoadedModel(tiny_model(0, width=16, family=family), TOKENIZER, "tiny", "")
        optim = OPTIM.model_copy(update={"last_layers": 1 if lora else None})
        learner = build_learner(source, ENGINE.model_copy(update={"recompute": recompute}), optim, lora=lora)
        runs = [0]
        layers_of(learner.trunk)[-1].mlp.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
        learner.forward(make_trees(), {"logprobs"}, reference="adapter-off" if lora else None)
        assert bool(learner.lower) == bool(learner.unadapted) == (lora is not None and family != "gpt2")
        learner.forward_backward(make_trees(), "sft", {})
        return runs[0], [master.grad for master in learner.masters if master.grad is not None]

    (plain, kept), (again, made) = learn(False), learn(True)
    assert again / plain == (4 / 3 if lora else 3 / 2)
    assert all(torch.equal(a, b) for a, b in zip(kept, made, strict=True))


def test_only_adapters_and_head_are_trained_with_lora() -> None:
    source = loaded()
    before = {name: p.detach().clone() for name, p in source.model.named_parameters()}
    learner = build_learner(source, ENGINE, OPTIM, lora=LoraConfig(rank=4), head=reward_head(16, 0))
    learner.forward_backward(make_trees(), "sft", {})
    learner.optim_step(1e-2, 1e-2)
    assert len(learner.weights) == 2 * 7 * 2
    for name, parameter in source.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer.", ".")])


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_top_layers_and_what_follows_them_train(family: str) -> None:
    model: Any = tiny_model(0, width=16, family=family)
    source = LoadedModel(model, TOKENIZER, "tiny", "")
    before = {name: p.detach().clone() for name, p in source.model.named_parameters()}
    learner = build_learner(source, ENGINE, OPTIM.model_copy(update={"last_layers": 1}), head=reward_head(16, 0))
    learner.forward_backward(scored(make_trees()), "bradley_terry", {})
    learner.optim_step(1e-2, 1e-2)
    moved = {name for name, p in source.model.named_parameters() if not torch.equal(p, before[name])}
    assert {layer_of(name) for name in moved} == {1, None}
    above = {name.rpartition(".")[0] for name in moved if layer_of(name) is None}
    assert above <= {"model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm"} and len(above) == 1


@pytest.mark.parametrize("kind", ["fp32", "bf16", "lora"])
def test_a_saved_learner_resumes_bit_for_bit(kind: Literal["fp32", "bf16", "lora"], tmp_path: Path) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32

    def make(seed: int) -> LocalLearner:
        lora = LoraConfig(rank=2) if kind == "lora" else None
        source = loaded(dtype, seed=0 if lora else seed)
        return build_learner(source, ENGINE, OPTIM, lora=lora, head=reward_head(16, seed), seed=seed)

    def go_on(learner: LocalLearner, first: int) -> None:
        for step in range(first, first + 2):
            learner.forward_backward(make_trees(step), "sft", {})
            learner.forward_backward(scored(make_trees(step)), "bradley_terry", {})
            learner.optim_step(1e-2, 1e-2)

    whole = make(0)
    go_on(whole, 0)
    whole.save(tmp_path / "step-000001", RECORD, {"kl_coef": 0.1}, resumable=True)
    go_on(whole, 2)
    again = make(1)
    assert again.load(tmp_path / "step-000001") == {"kl_coef": 0.1, "version": 2}
    assert again.version == 2
    go_on(again, 2)
    one, other = whole._training(), again._training()
    assert one.keys() == other.keys() and len(one) == 4 * (len(whole.masters) + 2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, again.weights, strict=True))
    assert not torch.equal(one["weight.0"], load_training(tmp_path / "step-000001")["weight.0"])


def scored(trees: list[Tree]) -> list[Tree]:
    return [Tree(id=t.id, nodes=t.nodes, pairs=(Pair(a=1, b=2),)) for t in trees]


def test_a_final_checkpoint_is_the_model_that_was_trained(tmp_path: Path) -> None:
    learner = build_learner(loaded(), ENGINE, OPTIM, lora=LoraConfig(rank=2))
    learner.forward_backward(make_trees(), "sft", {})
    learner.optim_step(3e-2, 1e-2)
    learner.save(tmp_path / "checkpoint", RECORD, {}, resumable=False)
    again = LocalScorer(load_model(str(tmp_path / "checkpoint"), dtype=torch.float32), token_budget=99)
    for one, other in zip(*(s.forward(make_trees(), {"logprobs"}) for s in (learner, again)), strict=True):
        np.testing.assert_allclose(one.logprobs[1], other.logprobs[1], atol=1e-4)
    assert not load_training(tmp_path / "checkpoint")
    with pytest.raises(PrefloopError, match="no optimizer state to resume from"):
        learner.load(tmp_path / "checkpoint")


def test_numbers_that_are_not_finite_stop_the_run() -> None:
    learner = build_learner(loaded(), ENGINE, OPTIM)
    learner.masters[0].grad = torch.full_like(learner.masters[0], float("inf"))
    with pytest.raises(PrefloopError, match="gradient norm is"):
        learner.optim_step(1e-3, 1e-3)
    with torch.no_grad():
        learner.weights[-1].fill_(float("nan"))
    with pytest.raises(PrefloopError, match=r"The sft loss is nan on .*; lower the learning rate"):
        learner.forward_backward(make_trees(), "sft", {})


def test_readings_find_their_nodes() -> None:
    """Packing reorders trees by size; every number must come back to its own tree, node and token."""
    trees, source = make_trees(count=8), loaded()
    plain = eager_copy(source.model)
    scorer = LocalScorer(source, token_budget=60)
    assert [i for members in pack(trees, 60) for i in members] != list(range(8))
    readings = scorer.forward(trees, {"logprobs", "entropy"})
    for tree, reading in zip(trees, readings, strict=True):
        assert set(reading.logprobs) == {1, 2} and not reading.values and not reading.exact_kl
        for node in (1, 2):
            logits, tokens = plain_logits(plain, tree, node)
            logp = torch.log_softmax(logits.detach(), -1)
            live = np.asarray(tree.nodes[node].fields["weight"])
            chosen = logp.gather(1, tokens[:, None])[:, 0].numpy()
            np.testing.assert_allclose(reading.logprobs[node], chosen * live, atol=1e-4)
            np.testing.assert_allclose(reading.entropy[node], -(logp.exp() * logp).sum(-1).numpy() * live, atol=1e-4)
    assert scorer.forward([], {"logprobs"}) == []


@pytest.mark.parametrize("pooling", ["last", "mean", 1, 3])
def test_scores_and_values_are_the_heads_of_the_right_states(pooling: Pooling) -> None:
    trees, head = make_trees(count=5), reward_head(16, 0)
    scorer = LocalScorer(loaded(), token_budget=60, head=head, pooling=pooling)
    readings = scorer.forward(trees, {"scores", "values"})
    for tree, reading in zip(trees, readings, strict=True):
        assert set(reading.scores) == {1, 2}
        for node in (1, 2):
            alone = Tree(id="alone", nodes=(tree.nodes[0], tree.nodes[node]))
            with torch.no_grad():
                states = scorer.hidden(build_forest([alone]), [])
            live = torch.tensor(tree.nodes[node].fields["weight"]) != 0
            root = len(tree.nodes[0].tokens)
            last = len(states) if pooling == "mean" else 1 if pooling == "last" else pooling
            kept = live.clone()
            kept[:-last] = False
            pooled = states[-1] if pooling == "last" else states[root:][kept].mean(0) if kept.any() else states[0] * 0
            expected = float(pooled @ head.weight.detach() + head.bias.detach())
            assert reading.scores[node] == pytest.approx(expected, abs=1e-4)
            before = states[root - 1 : -1] @ head.weight.detach() + head.bias.detach()
            np.testing.assert_allclose(reading.values[node], (before * live).numpy(), atol=1e-4)


def test_the_last_token_is_the_last_one_and_all_are_the_mean() -> None:
    trees = [dataclasses.replace(t, nodes=t.nodes[:2]) for t in make_trees(count=5)]
    known: list[Pooling] = ["last", 1, "mean", 99, 2]
    found = [LocalScorer(loaded(), token_budget=60, head=reward_head(16, 0), pooling=p) for p in known]
    last, one, mean, all_, two = ([r.scores[1] for r in s.forward(trees, {"scores"})] for s in found)
    assert last == pytest.approx(one, abs=1e-6) and mean == pytest.approx(all_, abs=1e-6)
    assert two != pytest.approx(last, abs=1e-3) and two != pytest.approx(mean, abs=1e-3)


def test_a_value_head_starts_at_zero_and_a_model_without_head_says_so() -> None:
    scorer = LocalScorer(loaded(), token_budget=60, head=value_head(16))
    assert not any(v.any() for r in scorer.forward(make_trees(), {"values"}) for v in r.values.values())
    with pytest.raises(PrefloopError, match="tiny has no scalar head"):
        LocalScorer(loaded(), token_budget=60).forward(make_trees(), {"scores"})


def test_without_adapters_there_is_nothing_to_switch_off() -> None:
    with pytest.raises(PrefloopError, match="tiny has no adapters to switch off"):
        LocalScorer(loaded(), token_budget=60).forward(make_trees(), {"logprobs"}, reference="adapter-off")


def test_exact_kl_is_zero_against_itself_and_else_the_sum_over_the_vocabulary() -> None:
    trees, one, two = make_trees(), loaded(seed=1), loaded(seed=2)
    policy, reference = (LocalScorer(source, token_budget=60) for source in (one, two))
    same = policy.forward(trees, {"exact_kl", "logprobs"}, reference=LocalScorer(loaded(seed=1), token_budget=60))
    for reading in same:
        assert all(np.abs(column).max() < 1e-6 for column in reading.exact_kl.values())
        assert all(np.array_equal(reading.logprobs[n], reading.reference_logprobs[n]) for n in (1, 2))
    apart = policy.forward(trees, {"exact_kl"}, reference=reference, temperature=0.7)
    plain = [eager_copy(source.model) for source in (one, two)]
    for tree, reading in zip(trees, apart, strict=True):
        logp, logq = (torch.log_softmax(plain_logits(m, tree, 1)[0].detach() / 0.7, -1) for m in plain)
        expected = (logp.exp() * (logp - logq)).sum(-1).numpy()
        assert (expected > 0.01).all()
        np.testing.assert_allclose(reading.exact_kl[1], expected, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    trees, source = make_trees(), loaded()
    plain = eager_copy(source.model)
    readings = LocalScorer(source, token_budget=60).forward(trees, {"logprobs"}, temperature=temperature)
    for tree, reading in zip(trees, readings, strict=True):
        logits, tokens = plain_logits(plain, tree, 1)
        expected = torch.log_softmax(logits.detach() / temperature, -1).gather(1, tokens[:, None])[:, 0]
        np.testing.assert_allclose(reading.logprobs[1], expected.numpy(), atol=1e-4)
    learner = build_learner(loaded(), ENGINE, OPTIM)
    loss = learner.forward_backward(trees, "sft", {"temperature": temperature})["loss/train"]
    count = sum(sum(t.nodes[n].fields["weight"]) for t in trees for n in (1, 2))
    assert loss == pytest.approx(-sum(float(r.logprobs[n].sum()) for r in readings for n in (1, 2)) / count, rel=1e-4)


def large_tree(first_turn: bool) -> Tree:
    """Four answers below two middle turns, the first of which may be read; 96 tokens, no branch over 40."""
    chance = random.Random(1)

    def columns(count: int) -> dict[str, tuple[float, ...]]:
        names = "old_logprobs", "sampled_logprobs", "reference_logprobs", "advantages", "old_values", "returns"
        known = {name: tuple(chance.uniform(-3, 0) for _ in range(count)) for name in names}
        return known | {"weight": (*(chance.choice((0.0, 1.0)) for _ in range(count - 1)), 1.0)}

    def node(parent: int, count: int, read: bool = True) -> Node:
        tokens = tuple(chance.randrange(259) for _ in range(count))
        return Node(parent=parent, tokens=tokens, author="policy", fields=columns(count) if read else {})

    nodes = (
        node(-1, 14, False),
        node(0, 9, first_turn),
        node(0, 11, False),
        node(1, 12),
        node(1, 17),
        node(2, 15),
        node(2, 18),
    )
    pairs = (Pair(a=3, b=6), Pair(a=5, b=4, target=0.25, weight=2.0), Pair(a=6, b=5, margin=0.5))
    rankings = (Ranking(nodes=(3, 6, 4, 5), ranks=(1, 0, 2, 1)), Ranking(nodes=(5, 6), ranks=(1, 0), weight=0.5))
    return Tree(id="large", nodes=nodes, pairs=pairs, rankings=rankings)


LARGE: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("bradley_terry", {"label_smoothing": 0.1, "centre": 0.01}),
    ("bradley_terry", {"floor": 0.1}),
    ("plackett_luce", {"centre": 0.01}),
    ("dpo", {"beta": 0.1}),
    ("ppo", {"clip": 0.2, "value_clip": 0.2, "value_coef": 0.5}),
    ("group", {"clip": 0.2, "kl_coef": 0.1}),
    ("group", {"clip": 0.2, "ratio": "sequence"}),
    ("group", {"clip": 0.2, "ratio": "geometric", "mean": "token", "surrogate": "weighted"}),
]


@pytest.mark.parametrize(("loss", "params"), LARGE, ids=[f"{name}-{i}" for i, (name, _) in enumerate(LARGE)])
@pytest.mark.parametrize("budget", [45, 60])
def test_a_tree_over_the_budget_is_cut_by_branches_with_the_same_gradients(
    loss: str, params: dict[str, Any], budget: int
) -> None:
    trees = [large_tree(loss != "group"), *make_pairs()]
    found = []
    for tokens in (1000, budget):
        engine = ENGINE.model_copy(update={"token_budget": tokens})
        head = reward_head(16, 0)
        learner = build_learner(loaded(), engine, OPTIM, head=head, pooling="mean")
        metrics = learner.forward_backward(trees, loss, {**params, "temperature": 0.8})
        grads = {name: p.grad for name, p in learner.model.named_parameters()} | {"head": head.weight.grad}
        readings = learner.forward(trees, {"logprobs", "entropy", "values", "scores"})
        found.append((metrics, grads, readings))
    (metrics, grads, readings), (cut_metrics, cut_grads, cut_readings) = found
    assert cut_metrics == pytest.approx(metrics, rel=1e-5)
    for name, grad in grads.items():
        if grad is None:
            assert cut_grads[name] is None
            continue
        assert (cut_grads[name] - grad).norm() <= 1e-5 * grad.norm(), name
    for reading, cut in zip(readings, cut_readings, strict=True):
        assert cut.scores == pytest.approx(reading.scores, abs=1e-5)
        for name in ("logprobs", "entropy", "values"):
            whole, other = getattr(reading, name), getattr(cut, name)
            assert whole.keys() == other.keys()
            for node, column in whole.items():
                np.testing.assert_allclose(other[node], column, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", 3])
def test_heads_read_the_same_states_wherever_a_tree_is_cut(pooling: Pooling) -> None:
    trees = [large_tree(first_turn=True), *make_pairs()]
    head = reward_head(16, 0)
    for budget in (1000, 80):
        scorer = LocalScorer(loaded(), token_budget=budget, head=head, pooling=pooling)
        for states, reading in zip(scorer.pooled(trees), scorer.forward(trees, {"scores"}), strict=True):
            assert head(states).tolist() == pytest.approx([reading.scores[n] for n in sorted(reading.scores)], abs=1e-6)


def test_a_branch_over_the_budget_says_so() -> None:
    learner = build_learner(loaded(), ENGINE.model_copy(update={"token_budget": 40}), OPTIM)
    with pytest.raises(PrefloopError, match=r"A branch of tree 'large' has 43 tokens, over the token budget of 40"):
        learner.forward_backward([large_tree(first_turn=True)], "sft", {})


def test_group_methods_refuse_turns_that_answers_share() -> None:
    learner = build_learner(loaded(), ENGINE.model_copy(update={"token_budget": 200}), OPTIM)
    with pytest.raises(PrefloopError, match="read answers only"):
        learner.forward_backward([large_tree(first_turn=True)], "group", {"clip": 0.2})


def test_tensorflows_epsilon_makes_the_first_updates_small() -> None:
    """Three updates by gradients of 1e-4, eps 1e-3: of torch's Adam about eps / (g + eps) of the rate each, of
    TensorFlow's lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). Traced by hand in float64."""

    def trace(hat: bool) -> list[float]:
        optim = OptimConfig(lr=1.0, eps=1e-3, eps_hat=hat, betas=(0.9, 0.999), max_grad_norm=1e9)
        learner = build_learner(loaded(), ENGINE, optim)
        tensor, found = learner.masters[0], []
        before = float(tensor.detach().flatten()[0])
        for _ in range(3):
            tensor.grad = torch.full_like(tensor, 1e-4)
            learner.optim_step(0.1, 0.1)
            found.append(before - float(tensor.detach().flatten()[0]))
            before -= found[-1]
        return found

    g, eps, b1, b2 = 1e-4, 1e-3, 0.9, 0.999
    ours = []
    for t in (1, 2, 3):
        m, v = g * (1 - b1**t), g * g * (1 - b2**t)
        ours.append(0.1 * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps))
    assert trace(True) == pytest.approx(ours, rel=1e-3)
    assert trace(False) == pytest.approx([0.1 * g / (g + eps)] * 3, rel=1e-3)
    assert trace(False)[0] > 25 * ours[0]


def test_an_exact_kl_in_the_loss_has_autograds_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of trees in forests, and of trees cut into pieces: the gradient of plain softmax KL on the plain model."""
    trees, source = make_pairs(), loaded(seed=1)
    reference = LocalScorer(loaded(seed=2), token_budget=60)
    plain, other = eager_copy(source.model), eager_copy(reference.model)
    total, count = torch.zeros(()), 0.0
    for tree in trees:
        for node in (1, 2):
            weight = torch.tensor(tree.nodes[node].fields["weight"])
            p, q = (plain_logits(model, tree, node)[0].log_softmax(-1) for model in (plain, other))
            total = total + ((p.exp() * (p - q.detach())).sum(-1) * weight).sum()
            count += float(weight.sum())
    (total / count).backward()  # type: ignore[no-untyped-call]
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters()])
    for budget in (60, 30):
        learner = build_learner(loaded(seed=1), ENGINE.model_copy(update={"token_budget": budget}), OPTIM)
        reference.token_budget = budget
        params = {"clip": 0.2, "kl_form": "exact", "kl_coef": 1.0}
        zero = [
            dataclasses.replace(
                tree,
                nodes=(
                    tree.nodes[0],
                    *(
                        dataclasses.replace(n, fields={**n.fields, "advantages": (0.0,) * len(n.tokens)})
                        for n in tree.nodes[1:]
                    ),
                ),
            )
            for tree in trees
        ]
        learner.forward_backward(zero, "ppo_policy", params, reference)
        found = torch.cat([p.grad.flatten() for p in learner.masters if p.grad is not None])
        assert (found - wanted).norm() < 1e-4 * wanted.norm()
        assert all(p.grad is None for p in reference.model.parameters())


def test_averages_follow_the_weights_and_stand_in_for_them() -> None:
    learner = build_learner(loaded(), ENGINE, OPTIM, head=value_head(16), ema=0.75)
    start = [tensor.detach().clone() for tensor in learner._trained()]
    wanted = [tensor.clone() for tensor in start]
    for step in range(3):
        learner.forward_backward(make_trees(step), "sft", {})
        learner.optim_step(1e-2, 1e-2)
        wanted = [0.75 * mean + 0.25 * now.detach() for mean, now in zip(wanted, learner._trained(), strict=True)]
    end = [tensor.detach().clone() for tensor in learner._trained()]
    with learner.averaged():
        for found, mean in zip(learner._trained(), wanted, strict=True):
            torch.testing.assert_close(found.detach(), mean, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(end, learner._trained(), strict=True))
    plain = build_learner(loaded(), ENGINE, OPTIM)
    with plain.averaged():
        assert all(torch.equal(a, b) for a, b in zip(plain.masters, plain._trained(), strict=True))
