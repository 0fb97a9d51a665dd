"""Direct preference optimisation on line: fresh pairs from the current policy, judged as they come."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.collect import AnnotatorConfig
from prefloop.configs.judge import JudgeConfig
from prefloop.configs.rollout import SampledConfig


class OnlineConfig(SampledConfig):
    """Fit the policy on comparisons of its own fresh answers with DPO (online AI feedback, Guo et al. 2024)."""

    group: int = Field(default=2, ge=2)
    """Completions per prompt; the best is compared with the worst."""
    panel: tuple[AnnotatorConfig, ...] = ()
    """Simulated annotators whose majority decides between two answers, in a reward's place; for a group of 2."""
    judges: tuple[JudgeConfig, ...] = ()
    """Models (docs/judges.md) that decide in a reward's place: an answer's score is the mean probability that it is
    better than another one to its prompt."""
    loss: Literal["dpo", "ipo", "hinge"] = "dpo"
    """Loss of the pairs: the three that Guo et al. 2024 tried (docs/methods/direct.md)."""
    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature: how strongly the reference holds; of ipo tau."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.panel and (self.reward or self.mix or self.group != 2):
            raise ValueError("a panel judges pairs in a reward's place; leave out reward and mix, and group at 2")
        if self.judges and (self.reward or self.mix or self.panel):
            raise ValueError("judges decide in a reward's place; leave out reward, mix and panel")
        if len({judge.name for judge in self.judges}) < len(self.judges):
            raise ValueError("two judges have one name; each needs a name of its own")
        return self
