"""Early stopping of stages that sample (Touvron et al. 2023, section 3.2.3): answers to prompts that are not learned
from, scored every few steps, and the policy that wrote the best."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import numpy as np

from prefloop.configs.rollout import HeldoutStopConfig, RolloutConfig
from prefloop.data.sources import load_prompts
from prefloop.data.trees import Encoder
from prefloop.engine.generate import LocalSampler
from prefloop.engine.local import LocalLearner
from prefloop.rewards.resolve import RewardFn
from prefloop.run import Run
from prefloop.stages.sampling import sample_groups
from prefloop.types import Checkpoint, Json, Sampling


class EarlyStop:
    """The policy on held-out prompts. `state` is what a checkpoint kept, {} at the start."""

    def __init__(
        self, config: RolloutConfig, settings: HeldoutStopConfig, judge: RewardFn, state: Mapping[str, Json]
    ) -> None:
        self.settings, self.judge, self.seed = settings, judge, config.seed
        self.prompts = load_prompts(config.prompts, splits=(settings.split,))[: settings.prompts]
        self.sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens)
        self.best: tuple[int, float] | None = tuple(state["best"]) if "best" in state else None

    @property
    def state(self) -> dict[str, Json]:
        """What a checkpoint has to keep, as plain JSON."""
        return {"best": list(self.best)} if self.best else {}

    def score(
        self, step: int, run: Run, learner: LocalLearner, sampler: LocalSampler, encoder: Encoder, parent: str
    ) -> float:
        """Mean score of the policy after `step` steps, of its averaged weights where these are kept. The best yet is
        saved."""
        with learner.averaged():
            sampler.load(learner.publish())
            groups = sample_groups(
                sampler, encoder, self.prompts, samplings=[self.sampling], seed=(self.seed, "heldout")
            )
        sampler.load(learner.publish())
        answers = [completion for group in groups for completion in group]
        found = float(np.mean([score.value for score in self.judge(self.prompts, answers)]))
        if self.best is None or found > self.best[1]:
            self.best = step, found
            folder = run.path / "best"
            record = Checkpoint(path=str(folder), kind="policy", step=step, parent=parent, config_hash=run.config_hash)
            learner.save(folder, record, {}, resumable=True)
        return found

    def due(self, step: int) -> bool:
        """Whether the policy after `step` steps is to be measured."""
        return step % self.settings.every == 0

    def over(self, step: int) -> str | None:
        """Why the policy after `step` steps, just measured, is the last; None while it may go on."""
        assert self.best is not None
        since = step - self.best[0]
        if since < self.settings.every * self.settings.patience:
            return None
        return f"Held-out prompts: no better answers than after step {self.best[0]} in {since} steps."

    def restore(self, run: Run, learner: LocalLearner) -> int:
        """Put the best policy back; returns after how many steps it was."""
        assert self.best is not None
        learner.load(run.path / "best")
        return self.best[0]

    def finish(self, run: Run, result: Mapping[str, Json]) -> Mapping[str, Json]:
        """Finish the run, with the best score; only then the copy that `restore` needed goes."""
        assert self.best is not None
        complete = run.finish({**result, "heldout_score": self.best[1]})
        shutil.rmtree(run.path / "best", ignore_errors=True)
        return complete


def early_stop(
    config: RolloutConfig, reward: RewardFn, watch: RewardFn | None, state: Mapping[str, Json]
) -> EarlyStop | None:
    """A run's own, by its reward or its watch; none where it has no such section."""
    if config.early_stop is None:
        return None
    judge = watch if config.early_stop.by == "watch" else reward
    assert judge is not None
    return EarlyStop(config, config.early_stop, judge, state)
