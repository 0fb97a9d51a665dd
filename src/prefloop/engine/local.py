"""The reference engine: one process, one device. Compute in bf16 or fp32; master weights, gradient sums and
optimizer state in fp32."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from prefloop.configs.shared import OptimConfig
from prefloop.data.forest import Forest, Piece, Totals, build_forest, pack, pieces, tree_tokens
from prefloop.engine.objectives import resolve_loss
from prefloop.engine.outputs import Outputs
from prefloop.engine.verbs import Column, Read, Readings, Weights
from prefloop.models.checkpoint import load_state, load_training, save_checkpoint
from prefloop.models.heads import ScalarHead
from prefloop.models.layers import carried, compiled, layer_of, layers_of, recomputed, running
from prefloop.models.load import LoadedModel
from prefloop.models.lora import adapter_off, adapter_parameters
from prefloop.models.norms import fuse_norms
from prefloop.ops.logprobs import Compared, compared_logprobs, token_logprobs
from prefloop.types import Checkpoint, PrefloopError, Tree

Pooling = Literal["last", "mean"] | int  # of a response's states: the last, the mean of all, or of the last so many


class LocalScorer:
    """A model, and a scalar head where it has one, that reads trees."""

    recompute = False

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        token_budget: int,
        head: ScalarHead | None = None,
        pooling: Pooling = "last",
        compiles: bool = False,
    ) -> None:
        self.loaded = loaded
        model: Any = loaded.model
        self.model: nn.Module = model
        fuse_norms(self.model)
        self.trunk: nn.Module = model.get_decoder()
        self.lm_head: nn.Module = model.get_output_embeddings()
        self.head = head
        self.members: Sequence[ScalarHead] = ()  # further heads, an ensemble with `head`
        self.pooling = pooling
        self.token_budget = token_budget
        self.device = next(self.model.parameters()).device
        first = min((layer_of(name) or 0 for name in adapter_parameters(self.model)), default=0)
        self.unadapted: Sequence[nn.Module] = list(getattr(self.trunk, "layers", ()))[:first]
        text = loaded.model.config.get_text_config()
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.windows = {None, getattr(text, "sliding_window", None)}
        self.layers = layers_of(self.trunk) if compiles and self.device.type == "cuda" else []
        self.compiled = compiled(self.layers)
        self.lower: dict[object, list[Any]] = {}  # what they gave for the forests that `forward` has compared

    @property
    def unembedding(self) -> Tensor:
        return cast(Tensor, self.lm_head.weight)

    def hidden(self, forest: Forest, lower: list[Any]) -> Tensor:
        """Last hidden states [T, D] of a forest. `lower`: what the layers below all adapters gave, empty before."""
        upper = layers_of(self.trunk)[len(self.unadapted) :] if self.recompute and torch.is_grad_enabled() else ()
        for window in self.windows if self.layers else ():
            forest.layout.mask(window)  # made once, and not by what is compiled
        with running(self.layers, self.compiled), carried(self.unadapted, lower), recomputed(upper):
            out = self.trunk(
                input_ids=forest.tokens[None],
                position_ids=forest.positions[None],
                layout=forest.layout,
                use_cache=False,
            )
        states: Tensor = out.last_hidden_state[0]
        return states

    def outputs(self, forest: Forest, states: Tensor, read: AbstractSet[Read], temperature: float) -> Outputs:
        """What is asked for, of hidden states: log-probs and entropy [R], values [R] before and steps [R] after each
        token, scores [B]."""
        logprobs = entropy = values = scores = steps = None
        if "logprobs" in read or "entropy" in read:
            logprobs, entropy = token_logprobs(
                states[forest.sources],
                self.unembedding,
                forest.tokens[forest.targets],
                temperature=temperature,
                softcap=self.softcap,
                entropy="entropy" in read,
            )
        if "values" in read:
            values = self._head()(states[forest.sources])
        if "scores" in read:
            scores = self._head()(self._pooled(forest, states))
        if "steps" in read:
            steps = self._head()(states[forest.targets])
        return Outputs(logprobs, entropy, values, scores, steps)

    def _pooled(self, forest: Forest, states: Tensor) -> Tensor:
        if self.pooling == "last":
            return states[forest.leaves]
        pooled = torch.zeros(len(forest.leaves), states.shape[1], device=states.device)
        of_leaf = forest.branch_of >= 0
        if self.pooling != "mean":
            of_leaf &= forest.targets > forest.leaves[forest.branch_of] - self.pooling
        pooled = pooled.index_add(0, forest.branch_of[of_leaf], states[forest.targets[of_leaf]].float())
        counts = torch.bincount(forest.branch_of[of_leaf], minlength=len(forest.leaves)).clamp(min=1)
        return pooled / counts[:, None]

    def _head(self) -> ScalarHead:
        if self.head is None:
            raise PrefloopError(f"{self.loaded.name} has no scalar head; take a reward-model checkpoint.")
        return self.head

    @torch.no_grad()
    def forward(
        self,
        trees: Sequence[Tree],
        read: AbstractSet[Read],
        *,
        temperature: float = 1.0,
        reference: LocalScorer | Literal["adapter-off"] | None = None,
    ) -> list[Readings]:
        """See verbs.Scorer. The reference shares the forest, so policy and reference run on the same micro-batches."""
        made: list[Readings] = [Readings() for _ in trees]
        whole, large = self._by_size(trees)
        for members in pack([trees[i] for i in whole], self.token_budget):
            places = [whole[i] for i in members]
            found = self._read([trees[i] for i in places], read, temperature, reference)
            for place, reading in zip(places, found, strict=True):
                made[place] = reading
        for place in large:
            for piece in pieces(trees[place], self.token_budget):
                (reading,) = self._read([piece.tree], read, temperature, reference)
                _merge(made[place], reading, piece.nodes)
        return made

    @torch.no_grad()
    def pooled(self, trees: Sequence[Tree]) -> list[Tensor]:
        """What heads read of each tree: a state of width D for each leaf, [B, D], in the order of the leaves."""
        made: list[dict[int, Tensor]] = [{} for _ in trees]
        whole, large = self._by_size(trees)
        for members in pack([trees[i] for i in whole], self.token_budget):
            places = [whole[i] for i in members]
            for tree, node, state in self._leaf_states([trees[i] for i in places]):
                made[places[tree]][node] = state
        for place in large:
            for piece in pieces(trees[place], self.token_budget):
                for _, node, state in self._leaf_states([piece.tree]):
                    made[place][piece.nodes[node]] = state
        return [torch.stack([known[node] for node in sorted(known)]) for known in made]

    def _leaf_states(self, trees: Sequence[Tree]) -> Iterator[tuple[int, int, Tensor]]:
        forest = build_forest(trees, self.device)
        for (tree, node), state in zip(forest.branches, self._pooled(forest, self.hidden(forest, [])), strict=True):
            yield tree, node, state

    def _by_size(self, trees: Sequence[Tree]) -> tuple[list[int], list[int]]:
        """Places of the trees that a forest can hold, and of those that it cannot."""
        fits = [tree_tokens(tree) <= self.token_budget for tree in trees]
        return [i for i, fit in enumerate(fits) if fit], [i for i, fit in enumerate(fits) if not fit]

    def _read(
        self,
        trees: Sequence[Tree],
        read: AbstractSet[Read],
        temperature: float,
        reference: LocalScorer | Literal["adapter-off"] | None,
    ) -> list[Readings]:
        forest = build_forest(trees, self.device)
        lower: list[Any] = []
        states = self.hidden(forest, lower)
        if reference is None:
            out = self.outputs(forest, states, read, temperature)
            columns = {"logprobs": out.logprobs, "entropy": out.entropy, "values": out.values, "steps": out.steps}
        else:
            out = self.outputs(forest, states, read - {"logprobs", "entropy"}, temperature)
            both = self._against(forest, states, reference, temperature, lower)
            if self.unadapted:
                self.lower[_content(trees)] = lower
            columns = {
                "logprobs": both.logp,
                "entropy": both.entropy,
                "values": out.values,
                "steps": out.steps,
                "reference_logprobs": both.logq,
                "exact_kl": both.kl,
            }
        return _readings(forest, trees, columns, out.scores)

    def _against(
        self, forest: Forest, states: Tensor, reference: LocalScorer | str, temperature: float, lower: list[Any]
    ) -> Compared:
        if reference == "adapter-off" and not adapter_parameters(self.model):
            raise PrefloopError(f"{self.loaded.name} has no adapters to switch off; give a reference model.")
        other = self if isinstance(reference, str) else reference
        with adapter_off(self.model) if isinstance(reference, str) else contextlib.nullcontext():
            states_q = other.hidden(forest, lower if other is self else [])
        return compared_logprobs(
            states[forest.sources],
            self.unembedding,
            states_q[forest.sources],
            other.unembedding,
            forest.tokens[forest.targets],
            temperature=temperature,
            softcap=self.softcap,
        )


def _content(trees: Iterable[Tree]) -> object:
    return tuple((node.parent, node.tokens) for tree in trees for node in tree.nodes)


def _readings(
    forest: Forest, trees: Sequence[Tree], columns: Mapping[str, Tensor | None], scores: Tensor | None
) -> list[Readings]:
    made = [Readings() for _ in trees]
    arrays = {name: column.float().cpu().numpy() for name, column in columns.items() if column is not None}
    for span in forest.spans:
        node = trees[span.tree].nodes[span.node]
        kept = np.flatnonzero(np.asarray(node.fields["weight"]))
        for name, array in arrays.items():
            full: Column = np.zeros(len(node.tokens), dtype=np.float32)
            full[kept] = array[span.start : span.stop]
            _of(made[span.tree], name)[span.node] = full
    if scores is not None:
        for (tree, node_index), score in zip(forest.branches, scores.float().cpu().tolist(), strict=True):
            _of(made[tree], "scores")[node_index] = score
    return made


def _merge(whole: Readings, part: Readings, nodes: Sequence[int]) -> None:
    for column in dataclasses.fields(Readings):
        for node, value in _of(part, column.name).items():
            _of(whole, column.name)[nodes[node]] = value


def _of(readings: Readings, name: str) -> dict[int, Any]:
    found: dict[int, Any] = getattr(readings, name)  # built here, as dicts
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """A piece of a tree as a forest, and where its read tokens and branches stand in the whole tree's."""

    forest: Forest
    tokens: Tensor
    branches: Tensor

    @classmethod
    def of(cls, piece: Piece, whole: Forest, device: torch.device) -> _Cut:
        forest = build_forest([piece.tree], device)
        starts = {span.node: span.start for span in whole.spans}
        tokens = [starts[piece.nodes[s.node]] + offset for s in forest.spans for offset in range(s.stop - s.start)]
        leaves = {node: index for index, (_, node) in enumerate(whole.branches)}
        branches = [leaves[piece.nodes[node]] for _, node in forest.branches]
        places = (torch.tensor(found, dtype=torch.long, device=device) for found in (tokens, branches))
        return cls(forest, *places)

    def columns(self, out: Outputs) -> list[tuple[str, Tensor, Tensor]]:
        """What an output holds: its name, its values, and their places in the whole."""
        known = ((f.name, getattr(out, f.name)) for f in dataclasses.fields(Outputs))
        return [(n, v, self.branches if n == "scores" else self.tokens) for n, v in known if v is not None]


class LocalLearner(LocalScorer):
    """A scorer that learns."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        optim: OptimConfig,
        token_budget: int,
        head: ScalarHead | None = None,
        pooling: Pooling = "last",
        lora: bool = False,
        recompute: bool = False,
        compiles: bool = False,
    ) -> None:
        super().__init__(loaded, token_budget=token_budget, head=head, pooling=pooling, compiles=compiles)
        self.recompute = recompute
        self.version = 0
        self.max_grad_norm = optim.max_grad_norm
        if lora:
            self.weights: list[Tensor] = list(adapter_parameters(self.model).values())
        else:
            self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = [w.detach().float().clone() if w.dtype != torch.float32 else w for w in self.weights]
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.register_post_accumulate_grad_hook(_into(master))  # type: ignore[no-untyped-call]  # torch's own
        groups: list[dict[str, Any]] = [{"params": self.masters, "lr": 0.0}]
        if head is not None:
            groups.append({"params": list(head.parameters()), "lr": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )

    def forward_backward(self, trees: Sequence[Tree], loss: str, params: Mapping[str, Any]) -> dict[str, float]:
        """See verbs.Learner. `params` may hold `temperature`; the rest goes to the loss."""
        function, read = resolve_loss(loss)
        params = dict(params)
        temperature = float(params.pop("temperature", 1.0))
        totals = Totals.of(trees)
        metrics: dict[str, float] = {}
        whole, large = self._by_size(trees)
        packed = pack([trees[i] for i in whole], self.token_budget)
        for members in [*([whole[i] for i in members] for members in packed), *([i] for i in large)]:
            batch = [trees[i] for i in members]
            forest = build_forest(batch, self.device)
            if members[0] in large:
                cut = [_Cut.of(piece, forest, self.device) for piece in pieces(batch[0], self.token_budget)]
                out = self._first_pass(cut, forest, read, temperature)
            else:
                cut = []
                lower = self.lower.get(_content(batch), []) if self.lower else []
                out = self.outputs(forest, self.hidden(forest, lower), read, temperature)
            result = function(out, forest, totals, **params)
            if not torch.isfinite(result.loss):
                names = ", ".join(tree.id for tree in batch[:3])
                found = float(result.loss.detach())
                raise PrefloopError(f"The {loss} loss is {found} on {names}, ...; lower the learning rate.")
            result.loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            self._second_pass(cut, out, read, temperature)
            for name, value in result.metrics.items():
                number, before = float(value), metrics.get(name, 0.0)
                metrics[name] = max(number, before) if name.endswith("_max") else before + number
        return metrics

    @torch.no_grad()
    def _first_pass(self, cut: Sequence[_Cut], forest: Forest, read: AbstractSet[Read], temperature: float) -> Outputs:
        """Outputs of a tree that no forest holds, piece by piece, as leaves of the loss's graph."""
        found: dict[str, Tensor] = {}
        for part in cut:
            out = self.outputs(part.forest, self.hidden(part.forest, []), read, temperature)
            for name, values, places in part.columns(out):
                size = len(forest.leaves if name == "scores" else forest.targets)
                found.setdefault(name, values.new_zeros(size))[places] = values
        return Outputs(**{name: values.requires_grad_() for name, values in found.items()})

    def _second_pass(self, cut: Sequence[_Cut], whole: Outputs, read: AbstractSet[Read], temperature: float) -> None:
        """The pieces again, now with the gradient that the loss has at their outputs."""
        for part in cut:
            out = self.outputs(part.forest, self.hidden(part.forest, []), read, temperature)
            grads = [(values, getattr(whole, name).grad, places) for name, values, places in part.columns(out)]
            reached = [(values, grad[places]) for values, grad, places in grads if grad is not None]
            torch.autograd.backward([values for values, _ in reached], [grad for _, grad in reached])

    def optim_step(self, lr: float, head_lr: float) -> dict[str, float]:
        """See verbs.Learner. Gradients are clipped to the configured global norm, heads included."""
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if not torch.isfinite(norm):
            raise PrefloopError(f"The gradient norm is {float(norm)}; lower the learning rate or look at the data.")
        if norm > self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(params, self.max_grad_norm, norm)
        for group, rate in zip(self.optimizer.param_groups, (lr, head_lr), strict=False):
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._cast()
        self.version += 1
        return {"optim/grad_norm": float(norm), "optim/lr": lr}

    @torch.no_grad()
    def _cast(self) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master)

    def publish(self) -> Weights:
        """Weights for a sampler in this process: the model itself, so there is nothing to copy. New answers follow."""
        self.lower.clear()
        return Weights(self.version, self.loaded)

    def save(self, folder: Path, record: Checkpoint, state: Mapping[str, Any], *, resumable: bool) -> None:
        """See verbs.Learner."""
        save_checkpoint(
            folder,
            record=record,
            model=self.loaded.model,
            tokenizer=self.loaded.tokenizer,
            head=self.head,
            members=self.members,
            training=self._training() if resumable else None,
            state={**state, "version": self.version},
        )

    def load(self, folder: Path) -> Mapping[str, Any]:
        """See verbs.Learner. Weights, moments and step counts come back bit for bit."""
        saved = load_training(folder)
        if "weight.0" not in saved:
            raise PrefloopError(f"The checkpoint {folder} holds no optimizer state to resume from; start from a step.")
        state = dict(load_state(folder))
        self.version = int(state["version"])
        with torch.no_grad():
            for index, param in enumerate(self._trained()):
                param.copy_(saved[f"weight.{index}"])
                if f"moment1.{index}" in saved:
                    self.optimizer.state[param] = {
                        "step": saved[f"step.{index}"].to(param.device, copy=True),
                        "exp_avg": saved[f"moment1.{index}"].to(param.device, copy=True),
                        "exp_avg_sq": saved[f"moment2.{index}"].to(param.device, copy=True),
                    }
        self._cast()
        return state

    def _trained(self) -> list[Tensor]:
        return [*self.masters, *(self.head.parameters() if self.head is not None else ())]

    def _training(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for index, param in enumerate(self._trained()):
            tensors[f"weight.{index}"] = param.detach()
            moments = self.optimizer.state.get(param)
            if moments:
                tensors[f"step.{index}"] = moments["step"]
                tensors[f"moment1.{index}"] = moments["exp_avg"]
                tensors[f"moment2.{index}"] = moments["exp_avg_sq"]
        return tensors


def _into(master: Tensor) -> Any:
    """A hook that moves a bf16 gradient into its master's fp32 sum."""

    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    return hook
