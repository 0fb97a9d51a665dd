"""The reference engine: one process, one device. Compute in bf16 or fp32; master weights, gradient sums and
optimizer state in fp32."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from prefloop.configs.shared import OptimConfig
from prefloop.data.forest import Forest, Totals, build_forest, pack, pieces, tree_tokens
from prefloop.engine.objectives import resolve_loss
from prefloop.engine.outputs import Outputs
from prefloop.engine.readings import Cut, content_of, merge, readings_of
from prefloop.engine.training import masters_of, reserve_gradient, restore_tensors, training_tensors
from prefloop.engine.verbs import Read, Readings, Weights
from prefloop.models.checkpoint import load_state, load_training, save_checkpoint
from prefloop.models.heads import ScalarHead
from prefloop.models.layers import carried, compiled, layer_of, layers_of, recomputed, running
from prefloop.models.load import LoadedModel
from prefloop.models.lora import adapter_off, adapter_parameters
from prefloop.models.norms import fuse_norms
from prefloop.ops.logprobs import Compared, compared_logprobs, token_logprobs
from prefloop.types import Checkpoint, PrefloopError, Tree

Pooling = Literal["last", "mean"] | int  # of a response's states: the last, the mean of all, or of the last so many


Reference: TypeAlias = "LocalScorer | Literal['adapter-off'] | None"


class LocalScorer:
    """A model, and a scalar head where it has one, that reads trees."""

    recompute = False
    unembedding_master: Tensor | None = None  # where it is learned: what takes its gradient

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
        self.kept: tuple[object, Tensor] | None = None  # of the forest learned next: its states, with a gradient

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
                master=self.unembedding_master,
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
        reference: Reference = None,
        learned: bool = False,
    ) -> list[Readings]:
        """See verbs.Scorer. The reference shares the forest, so policy and reference run on the same micro-batches."""
        made: list[Readings] = [Readings() for _ in trees]
        whole, large = self._by_size(trees)
        packed = pack([trees[i] for i in whole], self.token_budget)
        keep = learned and len(packed) == 1 and not large
        for members in packed:
            places = [whole[i] for i in members]
            found = self._read([trees[i] for i in places], read, temperature, reference, keep)
            for place, reading in zip(places, found, strict=True):
                made[place] = reading
        for place in large:
            for piece in pieces(trees[place], self.token_budget):
                (reading,) = self._read([piece.tree], read, temperature, reference)
                merge(made[place], reading, piece.nodes)
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
        reference: Reference,
        keep: bool = False,
    ) -> list[Readings]:
        forest = build_forest(trees, self.device)
        lower: list[Any] = []
        with torch.set_grad_enabled(keep):
            states = self.hidden(forest, lower)
        self.kept, states = (content_of(trees), states) if keep else None, states.detach()
        own = read if reference is None else read - {"logprobs", "entropy"}
        out = self.outputs(forest, states, own, temperature)
        columns = {name: getattr(out, name) for name in ("logprobs", "entropy", "values", "steps")}
        if reference is not None:
            both = self._against(forest, states, reference, temperature, lower)
            if self.unadapted:
                self.lower[content_of(trees)] = lower
            columns |= {"logprobs": both.logp, "entropy": both.entropy}
            columns |= {"reference_logprobs": both.logq, "exact_kl": both.kl}
        return readings_of(forest, trees, columns, out.scores)

    def _against(
        self, forest: Forest, states: Tensor, reference: LocalScorer | str, temperature: float, lower: list[Any]
    ) -> Compared:
        if reference == "adapter-off" and not adapter_parameters(self.model):
            raise PrefloopError(f"{self.loaded.name} has no adapters to switch off; give a reference model.")
        other = self if isinstance(reference, str) else reference
        with torch.no_grad(), adapter_off(self.model) if isinstance(reference, str) else contextlib.nullcontext():
            states_q = other.hidden(forest, lower if other is self else [])
        return compared_logprobs(
            states[forest.sources],
            self.unembedding,
            states_q[forest.sources],
            other.unembedding.detach(),
            forest.tokens[forest.targets],
            temperature=temperature,
            softcap=self.softcap,
        )


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
        ema: float | None = None,
    ) -> None:
        super().__init__(loaded, token_budget=token_budget, head=head, pooling=pooling, compiles=compiles)
        self.recompute = recompute
        self.version = 0
        if lora:
            self.weights: list[Tensor] = list(adapter_parameters(self.model).values())
        else:
            self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = masters_of(self.weights, loaded.model.get_input_embeddings(), self.unembedding)
        pairs = zip(self.weights, self.masters, strict=True)
        self.unembedding_master = next((master for weight, master in pairs if weight is self.unembedding), None)
        groups: list[dict[str, Any]] = [{"params": self.masters, "lr": 0.0}]
        if head is not None:
            groups.append({"params": list(head.parameters()), "lr": 0.0})
        self.optim, self.ema = optim, ema
        self.optimizer = torch.optim.AdamW(
            groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self.averages = [tensor.detach().clone() for tensor in self._trained()] if ema else []

    def forward_backward(
        self,
        trees: Sequence[Tree],
        loss: str,
        params: Mapping[str, Any],
        reference: Reference = None,
    ) -> dict[str, float]:
        """See verbs.Learner. `params` may hold `temperature`; the rest goes to the loss."""
        function, read = resolve_loss(loss)
        if self.unembedding_master is not None and read & {"logprobs", "entropy"}:
            reserve_gradient(self.unembedding_master)
        params = dict(params)
        temperature = float(params.pop("temperature", 1.0))
        totals = Totals.of(trees)
        metrics: dict[str, float] = {}
        kept, self.kept = self.kept, None
        whole, large = self._by_size(trees)
        packed = pack([trees[i] for i in whole], self.token_budget)
        for members in [*([whole[i] for i in members] for members in packed), *([i] for i in large)]:
            batch = [trees[i] for i in members]
            forest = build_forest(batch, self.device)
            if members[0] in large:
                cut = [Cut.of(piece, forest, self.device) for piece in pieces(batch[0], self.token_budget)]
                out = self._first_pass(cut, forest, read, temperature, reference)
            else:
                cut = []
                content = content_of(batch) if self.lower or kept else None
                lower = self.lower.get(content, [])
                states = kept[1] if kept and kept[0] == content else None
                kept = None
                out = self._learned(forest, lower, read, temperature, reference, states)
            result = function(out, forest, totals, **params)
            if not torch.isfinite(result.loss):
                names = ", ".join(tree.id for tree in batch[:3])
                found = float(result.loss.detach())
                raise PrefloopError(f"The {loss} loss is {found} on {names}, ...; lower the learning rate.")
            result.loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            self._second_pass(cut, out, read, temperature, reference)
            for name, value in result.metrics.items():
                number, before = float(value), metrics.get(name, 0.0)
                metrics[name] = max(number, before) if name.endswith("_max") else before + number
        return metrics

    def _learned(
        self,
        forest: Forest,
        lower: list[Any],
        read: AbstractSet[Read],
        temperature: float,
        reference: Reference,
        states: Tensor | None = None,
    ) -> Outputs:
        """What a loss sees of a forest, with a gradient; with a reference the exact KL to it too. `states`: where its
        hidden states are known."""
        states = self.hidden(forest, lower) if states is None else states
        out = self.outputs(forest, states, read, temperature)
        if reference is None:
            return out
        return dataclasses.replace(out, exact_kl=self._against(forest, states, reference, temperature, []).kl)

    @torch.no_grad()
    def _first_pass(
        self,
        cut: Sequence[Cut],
        forest: Forest,
        read: AbstractSet[Read],
        temperature: float,
        reference: Reference,
    ) -> Outputs:
        """Outputs of a tree that no forest holds, piece by piece, as leaves of the loss's graph."""
        found: dict[str, Tensor] = {}
        for part in cut:
            out = self._learned(part.forest, [], read, temperature, reference)
            for name, values, places in part.columns(out):
                size = len(forest.leaves if name == "scores" else forest.targets)
                found.setdefault(name, values.new_zeros(size))[places] = values
        return Outputs(**{name: values.requires_grad_() for name, values in found.items()})

    def _second_pass(
        self,
        cut: Sequence[Cut],
        whole: Outputs,
        read: AbstractSet[Read],
        temperature: float,
        reference: Reference,
    ) -> None:
        """The pieces again, now with the gradient that the loss has at their outputs."""
        for part in cut:
            out = self._learned(part.forest, [], read, temperature, reference)
            grads = [(values, getattr(whole, name).grad, places) for name, values, places in part.columns(out)]
            reached = [(values, grad[places]) for values, grad, places in grads if grad is not None]
            torch.autograd.backward([values for values, _ in reached], [grad for _, grad in reached])

    def optim_step(self, lr: float, head_lr: float) -> dict[str, float]:
        """See verbs.Learner. Gradients are clipped to the configured global norm, heads included."""
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if not torch.isfinite(norm):
            raise PrefloopError(f"The gradient norm is {float(norm)}; lower the learning rate or look at the data.")
        if norm > self.optim.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(params, self.optim.max_grad_norm, norm)
        self.version += 1
        for group, rate in zip(self.optimizer.param_groups, (lr, head_lr), strict=False):
            group["lr"] = rate
            if self.optim.eps_hat:  # torch adds eps to sqrt(v / (1 - beta2^t)), TensorFlow to sqrt(v)
                group["eps"] = self.optim.eps / math.sqrt(1 - self.optim.betas[1] ** self.version)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._cast()
        if self.ema:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self._trained(), 1 - self.ema)
        return {"optim/grad_norm": float(norm), "optim/lr": lr}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the weights are their moving average, where one is kept; publish them anew inside and after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for tensor, average in zip(self._trained() if self.averages else (), self.averages, strict=True):
            kept = tensor.clone()
            tensor.copy_(average)
            average.copy_(kept)
        self._cast()

    @torch.no_grad()
    def _cast(self) -> None:
        self.kept = None
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master)

    def publish(self) -> Weights:
        """Weights for a sampler in this process: the model itself, so there is nothing to copy. New answers follow."""
        self.lower.clear()
        self.kept = None
        return Weights(self.version, self.loaded)

    def save(
        self,
        folder: Path,
        record: Checkpoint,
        state: Mapping[str, Any],
        *,
        resumable: bool,
        critic: LocalLearner | None = None,
    ) -> None:
        """See verbs.Learner. A critic's training state goes into the same files: both are saved, or neither."""
        beside = {} if critic is None else {f"critic.{name}": value for name, value in critic._training().items()}
        versions = {"version": self.version} | ({} if critic is None else {"critic_version": critic.version})
        save_checkpoint(
            folder,
            record=record,
            model=self.loaded.model,
            tokenizer=self.loaded.tokenizer,
            head=self.head,
            members=self.members,
            training=self._training() | beside if resumable else None,
            state={**state, **versions},
        )

    def load(self, folder: Path, critic: LocalLearner | None = None) -> Mapping[str, Any]:
        """See verbs.Learner. Weights, moments, averages and step counts come back bit for bit, a critic's too."""
        saved = load_training(folder)
        if "weight.0" not in saved:
            raise PrefloopError(f"The checkpoint {folder} holds no optimizer state to resume from; start from a step.")
        state = dict(load_state(folder))
        self.version = int(state["version"])
        self._restore(saved)
        if critic is not None:
            critic.version = int(state["critic_version"])
            critic._restore({name.removeprefix("critic."): value for name, value in saved.items() if "critic." in name})
        return state

    def _trained(self) -> list[Tensor]:
        return [*self.masters, *(self.head.parameters() if self.head is not None else ())]

    def _training(self) -> dict[str, Tensor]:
        return training_tensors(self._trained(), self.optimizer, self.averages)

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        restore_tensors(self._trained(), self.optimizer, self.averages, saved)
        self._cast()
