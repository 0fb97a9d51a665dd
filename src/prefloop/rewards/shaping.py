"""Scores as they are learned from: bounded, normalised, clipped, less the price of length, capped where no end came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.configs.rollout import ShapingConfig
from prefloop.ops.statistics import Floats
from prefloop.types import Completion, Json, PrefloopError, Prompt, Score


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of all numbers so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: Floats) -> Moments:
        """With more numbers, as if all had come at once (Chan, Golub & LeVeque 1979)."""
        count, apart = self.count + len(values), float(np.mean(values)) - self.mean
        squares = float(np.sum((values - np.mean(values)) ** 2))
        return Moments(
            count,
            self.mean + apart * len(values) / count,
            self.squares + squares + apart**2 * self.count * len(values) / count,
        )

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count)


def bounded(scores: Floats, reference: Floats | float) -> Floats:
    """sigmoid(score - reference), in 0..1: steep where an answer is as good as the reference's, flat where it already
    beats it clearly (preference as reward, Fu et al. 2025, arXiv 2502.18770)."""
    return np.asarray(1 / (1 + np.exp(-(scores - reference))))


def standard(scores: Floats, known: Moments) -> Floats:
    """(score - mean) / (std + 1e-8)."""
    return np.asarray((scores - known.mean) / (known.std + 1e-8))


def capped(scores: Floats, completions: Sequence[Completion], limit: float) -> Floats:
    """At most `limit` for answers that are empty or did not end by themselves: what an empty answer is worth no reward
    model was shown. Others keep their score."""
    whole = np.array([c.finish_reason == "stop" and bool(c.text.strip()) for c in completions])
    return np.where(whole, scores, np.minimum(scores, limit))


class Shaping:
    """What a run makes of its scores (ShapingConfig says in which order). `answers`: the mean score of each prompt's
    baseline answers, for bound = "prompt". `state` is what a checkpoint kept, {} at the start: then the scores that
    come first must be of the reference's answers."""

    def __init__(
        self,
        config: ShapingConfig,
        missing_stop_score: float | None,
        answers: Mapping[str, float],
        state: Mapping[str, Json],
    ) -> None:
        self.config, self.missing_stop_score, self.answers = config, missing_stop_score, answers
        self.reference: float | None = state.get("reference")
        self.known = Moments(*state.get("moments", ()))

    @property
    def state(self) -> dict[str, Json]:
        """What a checkpoint has to keep, as plain JSON."""
        moments = [self.known.count, self.known.mean, self.known.squares]
        return {"reference": self.reference, "moments": moments, "answers": dict(self.answers)}

    def __call__(
        self, judged: Sequence[Score], prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[float]:
        """The batch's scores, shaped. PrefloopError where a prompt has no baseline answer to be bounded by."""
        scores = np.array([score.value for score in judged], dtype=float)
        if self.config.bound != "none":
            scores = bounded(scores, self._reference(scores, prompts))
        if self.config.normalise != "none":
            self.known = (self.known if self.config.normalise == "running" else Moments()).update(scores)
            scores = standard(scores, self.known)
        if self.config.clip is not None:
            scores = scores.clip(-self.config.clip, self.config.clip)
        scores = scores - self.config.length_penalty * np.array([len(c.tokens) for c in completions])
        if self.missing_stop_score is not None:
            scores = capped(scores, completions, self.missing_stop_score)
        return [float(score) for score in scores]

    def _reference(self, scores: Floats, prompts: Sequence[Prompt]) -> Floats | float:
        if self.config.bound == "mean":
            self.reference = float(np.mean(scores)) if self.reference is None else self.reference
            return self.reference
        if unknown := [prompt.id for prompt in prompts if prompt.id not in self.answers]:
            raise PrefloopError(
                f"shaping.bound is 'prompt', but prompt {unknown[0]!r} has no answer in the baseline; collect answers "
                "to all prompts at this temperature, or take 'mean'."
            )
        return np.array([self.answers[prompt.id] for prompt in prompts])
