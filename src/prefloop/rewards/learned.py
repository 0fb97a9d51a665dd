"""A reward model as a reward function, in standard deviations among answers to one prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prefloop.configs.shared import EngineConfig
from prefloop.data.trees import answer_tree, by_prompt
from prefloop.engine.build import build_adapted_scorer, build_encoder, build_reward_scorer, resolve_checkpoint
from prefloop.models.checkpoint import load_adapters, load_head, load_members, read_checkpoint
from prefloop.models.heads import ScalarHead
from prefloop.models.lora import adapter_parameters
from prefloop.ops.ensembles import Floats, disagreement
from prefloop.types import Completion, PrefloopError, Prompt, Score


class LearnedReward:
    """gain * raw score + bias, fixed at training on reference samples: mean 0, and std 1 within prompts. M heads on one
    trunk (reward.heads), each with a gain and bias of its own; the first is the reward, all are an ensemble's members.
    """

    def __init__(self, name: str, engine: EngineConfig) -> None:
        self.scorer, self.record = build_reward_scorer(name, engine)
        if "steps" in self.record.details:
            raise PrefloopError(f"{name} scores steps; say how they are combined, as in 'steps=product:{name}'.")
        self.encoder = build_encoder(self.scorer.loaded)
        assert self.scorer.head is not None
        self.heads = [self.scorer.head, *self.scorer.members]
        details = self.record.details
        scales = [(details["gain"], details["bias"]), *details.get("members", ())]
        self.gain, self.bias = np.array(scales, dtype=float).T
        self.name = self.record.path
        self.members = _named(self.name, len(self.heads))

    def raw(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Floats:
        """[M, N] of completions[i] as answers to prompts[i], on their own tokens; a shared prompt is read once."""
        return self.read(prompts, completions, self.heads)

    def read(self, prompts: Sequence[Prompt], completions: Sequence[Completion], heads: Sequence[ScalarHead]) -> Floats:
        """`raw` by some heads."""
        groups = by_prompt(prompts)
        trees = [answer_tree(prompts[g[0]], [completions[i] for i in g], self.encoder) for g in groups]
        made = np.zeros((len(heads), len(prompts)))
        with torch.no_grad():
            for members, states in zip(groups, self.scorer.pooled(trees), strict=True):
                made[:, members] = [head(states).tolist() for head in heads]
        return made

    def scaled(self, raw: Floats) -> Floats:
        """[M, N] raw scores on each head's scale."""
        return np.asarray(self.gain[:, None] * raw + self.bias[:, None])

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Scores by the first head; `disagreement` among their parts is the std over heads, where there are several."""
        raw = self.raw(prompts, completions)
        scores = self.scaled(raw)
        parts = {"raw": raw[0]} | ({"disagreement": disagreement(scores)} if len(scores) > 1 else {})
        return [
            Score(value=float(value), parts={name: float(of[i]) for name, of in parts.items()}, by=self.name)
            for i, value in enumerate(scores[0])
        ]


class SharedTrunk(LearnedReward):
    """Reward models that are adapters on one trunk, which is loaded once; the heads of all of them are the members."""

    def __init__(self, folders: Sequence[str], engine: EngineConfig) -> None:
        paths = [resolve_checkpoint(folder) for folder in folders]
        records = [read_checkpoint(path, verify=True) for path in paths]
        self.scorer, self.record = build_adapted_scorer(records[0], engine), records[0]
        self.encoder = build_encoder(self.scorer.loaded)
        self.places = adapter_parameters(self.scorer.model)
        device = self.scorer.device
        self.parts = [
            (
                {name: weight.to(device) for name, weight in load_adapters(path).items()},
                [head.to(device) for head in (load_head(path), *load_members(path))],
            )
            for path in paths
        ]
        self.heads = [head for _, heads in self.parts for head in heads]
        scales = [scale for r in records for scale in ((r.details["gain"], r.details["bias"]), *r.details["members"])]
        self.gain, self.bias = np.array(scales, dtype=float).T
        counts = [len(heads) for _, heads in self.parts]
        self.members = [name for path, n in zip(paths, counts, strict=True) for name in _named(path, n)]
        self.name = ",".join(paths)

    def raw(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Floats:
        """See LearnedReward: a pass of the trunk for each model, with its adapters in place."""
        made = []
        for adapters, heads in self.parts:
            with torch.no_grad():
                for name, weight in self.places.items():
                    weight.copy_(adapters[name])
            made.append(self.read(prompts, completions, heads))
        return np.vstack(made)


def learned_rewards(folders: Sequence[str], engine: EngineConfig) -> list[LearnedReward]:
    """Reward models, in order: on one trunk where all are adapters of one shape on a model that is there, unchanged."""
    records = [read_checkpoint(resolve_checkpoint(folder)) for folder in folders]
    kinds = [(r.parent, *(r.details.get(key) for key in ("lora", "pooling", "trunk"))) for r in records]
    parent, about = records[0].parent, records[0].details
    shared = len(folders) > 1 and about.get("lora") and kinds.count(kinds[0]) == len(kinds)
    shared = shared and not any("steps" in record.details for record in records)
    if shared and (Path(parent).is_dir() or os.sep not in parent):
        together = SharedTrunk(folders, engine)
        if together.scorer.loaded.fingerprint == about.get("trunk"):
            return [together]
    return [LearnedReward(folder, engine) for folder in folders]


def _named(name: str, heads: int) -> list[str]:
    return [name] if heads == 1 else [f"{name}#{place}" for place in range(heads)]
