"""Reward-model training."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class EarlyStopConfig(Config):
    """End training when the held-out loss no longer falls, and keep the weights where it was lowest. The held-out
    comparisons then chose the weights that they measure."""

    every: int = Field(default=20, ge=1)
    """Updates between measurements of the held-out loss."""
    patience: int = Field(default=3, ge=1)
    """Measurements in a row without a lower loss that end training."""


class RewardConfig(Config):
    """Fit a reward model on comparisons, or a process reward model on labels of steps."""

    out: str
    """Run folder."""
    model: str = ""
    """Checkpoint to start from, usually the SFT run."""
    preferences: str = ""
    """A label run folder, or JSONL of preferences, prompt/chosen/rejected rows or HH transcripts; with the loss
    'process' JSONL of step labels."""
    skip_bad: bool = False
    """Leave out comparisons that do not fit, with a warning that counts them, instead of stopping at the first."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the comparisons; more than one overfits (Ouyang et al. 2022)."""
    batch: int = Field(default=8, ge=1)
    """Prompt groups per update; all pairs of a prompt are one element."""
    loss: Literal["bradley_terry", "plackett_luce", "process"] = "bradley_terry"
    """Likelihood of every pair, or of whole rankings (a pair is a ranking of two); process: of the label of each step,
    up to an answer's first error (docs/objectives.md)."""
    steps: str = ""
    """What ends a step, with the loss 'process': 'lines', 'paragraphs', 'numbered' ("Step 1" begins one),
    'regex:PATTERN', 'token:ID'."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label names the wrong answer; scores' differences then stay bounded."""
    random_floor: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a label is a random answer, which bounds a pair's loss (0.1 in Christiano et al. 2017)."""
    centre: float = Field(default=0.0, ge=0)
    """Coefficient of the squared sum of a pair's scores: draws their mean to 0 (0.01 in Eisenstein et al. 2023)."""
    margins: bool = True
    """Use the margins that comparisons carry (collect them with label.margins); false ignores them."""
    pooling: Literal["last", "mean", "last_k"] = "last"
    """What of the response the head reads: the last token's state, the mean of all, or of the last pooling_k."""
    pooling_k: int = Field(default=0, ge=0)
    """Tokens whose mean last_k takes, fewer where an answer is shorter; 0 with the others."""
    heads: int = Field(default=1, ge=1)
    """Scalar heads on the one trunk. The first learns with it, the others after it, each from its own seed and in its
    own order of the data: an ensemble at the cost of one model, named 'mean:RUN' as a reward."""
    early_stop: EarlyStopConfig | None = None
    """Stop on the held-out loss; "none" makes all passes and keeps the last weights."""
    optim: OptimConfig = OptimConfig(lr=2e-5)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    heldout: float = Field(default=0.15, gt=0, lt=1)
    """Share of prompts held out when the preferences carry no dev split."""
    reference_samples: int = Field(default=256, ge=2)
    """Answers on which gain and bias are fixed: mean 0 over all, std 1 among answers to one prompt.
    Where held-out labels confirm little of that std, scores are smaller."""
    scaled_start: bool = False
    """Before the first update too, bring the reference samples to that mean and std, by the head's weights
    (Ziegler et al. 2019)."""
    shuffle_labels: bool = False
    """Negative control: flip half of each prompt's training targets, so that on the whole they say nothing."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=100, ge=1)
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of head and data order."""
    head_seed: int | None = None
    """Seed of the first head alone; "none" takes seed. Models whose weights are to be averaged start from one head."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        noise = bool(self.label_smoothing or self.random_floor)
        if self.loss == "plackett_luce" and noise:
            raise ValueError("label_smoothing and random_floor are of pairs; leave both at 0 with 'plackett_luce'")
        if self.loss == "process" and (noise or self.centre or self.pooling != "last"):
            raise ValueError("pooling, label_smoothing, random_floor and centre are of comparisons; leave them out")
        if self.loss == "process" and (self.heads > 1 or self.scaled_start):
            raise ValueError("further heads and a scaled start are of comparisons; leave them out with 'process'")
        if self.label_smoothing and self.random_floor:
            raise ValueError("label_smoothing and random_floor both allow for wrong labels; leave one of them at 0")
        if (self.pooling == "last_k") != (self.pooling_k > 0):
            raise ValueError("pooling 'last_k' needs a pooling_k above 0, and the others need 0; change one of them")
        if (self.loss == "process") != bool(self.steps):
            raise ValueError("loss 'process' needs a rule in steps, and the others none; change one of them")
        return self
