"""Group methods: policy gradients whose baseline is the prompt's other answers, without a value head."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.rollout import KLConfig, RolloutConfig
from prefloop.configs.shared import Config


class CorrectionConfig(Config):
    """Weights for what was sampled by other weights than those that learn: their probability over the sampler's."""

    level: Literal["token", "sequence"] = "token"
    """A weight for each token, or one for a whole answer, the product of its tokens'."""
    beyond: Literal["truncate", "mask"] = "truncate"
    """What happens to weights beyond the bounds: truncate takes the bound (Yao et al. 2025), mask takes 0."""
    low: float | None = Field(default=None, ge=0)
    """Lowest weight; none is no bound."""
    high: float | None = Field(default=2.0, gt=0)
    """Highest weight; none is no bound."""
    drop_above: float | None = Field(default=None, gt=0)
    """Answers with a negative advantage count 0 where the sampler's log-probs are above the policy's by more than this,
    nats a token on average (DeepSeek-V3.2)."""


_FREE = KLConfig(controller="fixed", coef=0.0)
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr-grpo": {"scale": "none", "mean": "constant", "kl": _FREE},
    "dapo": {"mean": "token", "clip_high": 0.28, "kl": _FREE, "draws": 4, "overlong": 0.2},
    "gspo": {"ratio": "geometric", "clip": 3e-4, "clip_high": 4e-4, "kl": _FREE},
    "cispo": {"surrogate": "weighted", "mean": "token", "clip": 1.0, "clip_high": 4.0, "kl": _FREE},
    "rloo": {"centre": "others", "scale": "none", "ratio": "sequence"},
    "reinforce++": {"centre": "batch", "scale": "batch", "mean": "token"},
}
"""What each method sets, beside the defaults of `GroupConfig`, which are GRPO's."""


class GroupConfig(RolloutConfig):
    """Optimise a policy against a reward by comparing answers: GRPO and its relatives (docs/methods/group.md)."""

    method: Literal["grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++"] = "grpo"
    """Sets the keys below that are not given, as its paper has them; the run's config.json shows them all. The defaults
    here are grpo's; docs/methods/group.md has a table of the others."""
    group: int = Field(default=8, ge=1)
    """Completions per prompt."""
    centre: Literal["none", "group", "others", "batch"] = "group"
    """Mean that is taken off a score: that of its prompt's answers, of the others among them, or of the batch."""
    scale: Literal["none", "group", "batch"] = "group"
    """Std that the difference is divided by: of the prompt's answers, or of the batch."""
    ratio: Literal["token", "sequence", "geometric"] = "token"
    """Probability ratio of the new to the old policy: of each token, of the whole answer, or its root by length."""
    surrogate: Literal["clipped", "weighted"] = "clipped"
    """clipped stops the gradient beyond the clip range; weighted clips the ratio as a weight and never stops it."""
    mean: Literal["response", "token", "constant"] = "response"
    """Mean of the loss: over tokens of each answer, then over answers; over all tokens; or the sum over answers times
    max_tokens."""
    clip_high: float | None = Field(default=None, gt=0)
    """Clip range above 1 of the ratio; none takes `clip`, which then is that below 1 too."""
    kl: KLConfig = KLConfig(controller="fixed", coef=0.04)
    """Leash to the reference; with a fixed coefficient of 0 no reference is read. Where not given its form is k3, and
    reward for rloo and reinforce++: with one ratio an answer the answer pays, else each token for what follows it."""
    draws: int = Field(default=1, ge=1)
    """Rounds of sampling for a batch at most. After each, prompts whose answers all scored alike make room for others
    (DAPO's dynamic sampling); what the last round leaves empty they fill again."""
    overlong: float = Field(default=0.0, ge=0, le=1)
    """Last share of max_tokens in which an answer loses score with its length, at its end 1 (DAPO; 0.2 there)."""
    skip_truncated: bool = False
    """Answers that did not end by themselves are compared and not learned from (DAPO's overlong filtering)."""
    staleness: int = Field(default=0, ge=0)
    """Batches that sampling is ahead of learning: answers come from the policy as it was so many steps ago."""
    correction: CorrectionConfig | None = None
    """Weights for what other weights sampled; where not given they are on with int8 rollouts or staleness, at the level
    of `ratio`."""

    @classmethod
    def nested_defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Config]:
        """The method's own leash, and a correction at the level of its ratio."""
        set_by = METHODS.get(given.get("method", "grpo"), {})
        ratio = given.get("ratio", set_by.get("ratio", "token"))
        correction = CorrectionConfig(level="token" if ratio == "token" else "sequence")
        return {"correction": correction} | {key: own for key, own in set_by.items() if isinstance(own, Config)}

    @model_validator(mode="after")
    def _as_the_method_has_it(self) -> Self:
        set_by = dict(METHODS[self.method])
        if self.rollout_dtype == "int8" or self.staleness:
            given: dict[str, Any] = {
                key: getattr(self, key) for key in ("method", "ratio") if key in self.model_fields_set
            }
            set_by["correction"] = self.nested_defaults(given)["correction"]
        self.__dict__.update({key: value for key, value in set_by.items() if key not in self.model_fields_set})
        if self.kl.form is None:
            form = "reward" if self.method in ("rloo", "reinforce++") else "k3"
            self.__dict__["kl"] = self.kl.model_copy(update={"form": form})
        if self.draws > 1 and self.shaping.normalise == "batch":
            raise ValueError(
                "shaping.normalise is 'batch', but with draws above 1 a batch comes in rounds; take 'running' or 1 draw"
            )
        if self.group < 2 and (self.centre in ("group", "others") or self.scale == "group"):
            raise ValueError("a group of 1 has no others to compare with; set group to 2 or more, or centre to batch")
        return self
