"""Direct preference optimisation: a policy from comparisons, without a reward model and without sampling."""

from pydantic import Field

from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class DirectConfig(Config):
    """Fit the policy itself on comparisons with DPO (Rafailov et al. 2023)."""

    out: str
    """Run folder."""
    policy: str = ""
    """Checkpoint to start from, usually the SFT run; it is also the reference."""
    preferences: str = ""
    """A label run folder, or JSONL of preferences, prompt/chosen/rejected rows or HH transcripts."""
    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature: how strongly the reference holds."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the comparisons."""
    batch: int = Field(default=8, ge=1)
    """Prompt groups per update; all pairs of a prompt are one element."""
    optim: OptimConfig = OptimConfig(lr=1e-6)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters; the reference is then the same model with the adapter off."""
    heldout: float = Field(default=0.15, gt=0, lt=1)
    """Share of prompts held out when the preferences carry no dev split."""
    shuffle_labels: bool = False
    """Negative control: flip half of each prompt's training targets, so that on the whole they say nothing."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=100, ge=1)
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of data order."""
