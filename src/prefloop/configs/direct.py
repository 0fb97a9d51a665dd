"""Direct preference optimisation: a policy from comparisons, without a reward model and without sampling."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig, nearest

_PLAIN = {"nll": 0.0}
_DIVERGENCE = {"divergence": "reverse_kl", "divergence_alpha": 0.5}
KNOBS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0, "length_penalty": 0.0, **_DIVERGENCE, **_PLAIN},
    "dpo_norm": {"beta": 5.0, "label_smoothing": 0.0, **_PLAIN},
    "dpo_ranked": {"beta": 0.1, **_PLAIN},
    "robust": {"beta": 0.1, "label_smoothing": 0.1, **_DIVERGENCE, **_PLAIN},
    "ipo": {"beta": 0.1, **_PLAIN},
    "ipo_norm": {"beta": 0.1, **_PLAIN},
    "hinge": {"beta": 0.1, **_DIVERGENCE, **_PLAIN},
    "slic": {"beta": 0.1, "nll": 0.1},
    "exo": {"beta": 0.1, "label_smoothing": 1e-3, **_DIVERGENCE, **_PLAIN},
    "nca": {"beta": 0.1, **_PLAIN},
    "apo_zero": {"beta": 0.1, **_PLAIN},
    "apo_down": {"beta": 0.1, **_PLAIN},
    "sppo": {"beta": 0.1, **_PLAIN},
    "simpo": {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, **_PLAIN},
    "cpo": {"beta": 0.1, "label_smoothing": 0.0, "nll": 1.0},
    "orpo": {"beta": 0.1, "nll": 1.0},
    "kto": {"beta": 0.1, "desirable": 1.0, "undesirable": 1.0},
}
"""What each loss reads, and what a key is where it is not set."""
REFERENCE_FREE = frozenset({"slic", "simpo", "cpo", "orpo"})
USE_MARGINS = frozenset({"dpo", "dpo_norm", "robust", "hinge", "slic", "simpo", "cpo"})


def _of_loss(key: str) -> Callable[[dict[str, Any]], Any]:
    """What a key is where it is not set: as the first loss that reads it has it, so that a run folder says it."""

    def default(given: dict[str, Any]) -> Any:
        names = [given.get("loss", "dpo"), *given.get("also", {})]
        return next((KNOBS[name][key] for name in names if key in KNOBS.get(name, {})), None)

    return default


class DirectConfig(Config):
    """Fit the policy itself on comparisons, with DPO (Rafailov et al. 2023) or a relative of it, or on good and bad
    answers (KTO). docs/methods/direct.md says which loss is for what."""

    out: str
    """Run folder."""
    policy: str = ""
    """Checkpoint to start from, usually the SFT run; it is also the reference."""
    preferences: str = ""
    """A label run folder, or JSONL of preferences, prompt/chosen/rejected rows or HH transcripts; with the loss 'kto'
    also of answers with a label good or bad (docs/data.md)."""
    skip_bad: bool = False
    """Leave out comparisons that do not fit, with a warning that counts them, instead of stopping at the first."""
    loss: str = "dpo"
    """dpo, dpo_norm, dpo_ranked, robust, ipo, ipo_norm, hinge, slic, exo, nca, apo_zero, apo_down, sppo, simpo, cpo,
    orpo, kto, or "module:function" of your own. A key below that the loss does not read is refused."""
    also: dict[str, float] = Field(default_factory=dict)
    """Further losses on the same comparisons, each with its weight beside the 1 of `loss`; keys are shared."""
    beta: float | None = Field(default_factory=_of_loss("beta"), gt=0)
    """Inverse temperature: how strongly the reference holds; of ipo tau, of orpo the weight of the odds. Not set: 0.1,
    of dpo_norm 5, of simpo 2."""
    label_smoothing: float | None = Field(default_factory=_of_loss("label_smoothing"), ge=0, lt=0.5)
    """Probability that a label is wrong. dpo, dpo_norm, simpo, cpo (not set: 0): conservative; robust (0.1): without
    the bias of wrong labels; exo (0.001): must be above 0."""
    gamma: float | None = Field(default_factory=_of_loss("gamma"), ge=0)
    """simpo: lead, in beta times log-probs a token, that a chosen answer must have to cost little. Not set: 1."""
    length_penalty: float | None = Field(default_factory=_of_loss("length_penalty"), ge=0)
    """dpo: what labels are taken to favour a token more of length by, in logits; the policy does not learn it (R-DPO,
    0.01 to 0.05). Not set: 0."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] | None = Field(
        default_factory=_of_loss("divergence")
    )
    """dpo, robust, hinge, exo: the divergence from the reference that beta weighs. Not set: reverse_kl."""
    divergence_alpha: float | None = Field(default_factory=_of_loss("divergence_alpha"), gt=0, lt=1)
    """Of the divergence 'alpha': between reverse KL (0) and forward KL (1). Not set: 0.5."""
    nll: float | None = Field(default_factory=_of_loss("nll"), ge=0)
    """Weight of the chosen answers' negative log-likelihood a token; all but kto. Not set: 0, of slic 0.1, of cpo and
    orpo 1."""
    desirable: float | None = Field(default_factory=_of_loss("desirable"), gt=0)
    """kto: weight of good answers. Times their number it should be 1 to 1.5 times that of bad ones. Not set: 1."""
    undesirable: float | None = Field(default_factory=_of_loss("undesirable"), gt=0)
    """kto: weight of bad answers. Not set: 1."""
    params: dict[str, float] = Field(default_factory=dict)
    """Parameters of a loss of your own."""
    margins: bool = True
    """Use the margins that comparisons carry (collect them with label.margins); false ignores them."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the comparisons."""
    batch: int = Field(default=8, ge=1)
    """Prompt groups per update; all pairs, or answers, of a prompt are one element."""
    optim: OptimConfig = OptimConfig(lr=1e-6)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters; the reference is then the same model with the adapter off."""
    heldout: float = Field(default=0.15, gt=0, lt=1)
    """Share of prompts held out when the preferences carry no dev split."""
    shuffle_labels: bool = False
    """Negative control: flip half of each prompt's training targets, so that on the whole they say nothing; labels good
    and bad are dealt out anew."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=100, ge=1)
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of data order."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [self.loss, *self.also]
        for name in names:
            if name not in KNOBS and (":" not in name or name in self.also):
                raise ValueError(f"unknown loss {name!r}; {nearest(name, KNOBS)}, or 'module:function' of your own")
        if self.also and (":" in self.loss or "kto" in names or self.loss in self.also):
            raise ValueError("also adds other losses on pairs to one on pairs; leave out kto, your own, the same twice")
        read = {key for name in names for key in KNOBS.get(name, {})}
        if unset := sorted(key for key in read if getattr(self, key) is None):
            raise ValueError(f"{' and '.join(names)} reads {unset[0]}; set it, or leave it out for its default")
        for key in {key for own in KNOBS.values() for key in own} - read:
            if getattr(self, key) is not None:
                who = ", ".join(name for name, own in KNOBS.items() if key in own)
                raise ValueError(f"{' and '.join(names)} reads no {key}, only {who}; leave it out")
        if self.params and ":" not in self.loss:
            raise ValueError(f"params are of a loss of your own, and {self.loss} has keys; leave them out")
        if not self.label_smoothing and {"robust", "exo"} & set(names):
            raise ValueError("robust and exo need a label_smoothing above 0")
        if self.divergence != "alpha" and self.divergence_alpha not in (None, 0.5):
            raise ValueError("divergence_alpha is of the divergence 'alpha'; leave it out or set that")
        return self

    @property
    def reference_free(self) -> bool:
        """Whether no loss reads the reference; of your own the function says so."""
        return {self.loss, *self.also} <= REFERENCE_FREE

    @property
    def objective(self) -> tuple[str, dict[str, Any]]:
        """The loss that an engine is asked for, and its parameters."""
        if ":" in self.loss:
            return self.loss, dict(self.params)
        own = {name: {key: getattr(self, key) for key in KNOBS[name]} for name in (self.loss, *self.also)}
        if not self.also:
            return self.loss, own[self.loss]
        for params in [params for params in own.values() if "nll" in params][1:]:
            params["nll"] = 0.0  # once for all
        return "weighted", {"parts": {name: (self.also.get(name, 1.0), params) for name, params in own.items()}}
