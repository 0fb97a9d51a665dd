"""Supervised fine-tuning."""

from pydantic import Field

from prefloop.configs.shared import Config, EngineConfig, LoraConfig, OptimConfig


class SFTConfig(Config):
    """Fine-tune a model on demonstrations (next-token loss on the answers only)."""

    out: str
    """Run folder."""
    model: str = "smollm2-135m"
    """Hub id, local folder, GGUF file, checkpoint, or the embedded smollm2-135m."""
    demonstrations: str = "builtin"
    """JSONL of demonstrations, chat messages or prompt/completion rows; 'builtin' takes the shipped ones."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the demonstrations."""
    batch: int = Field(default=16, ge=1)
    """Demonstrations per update."""
    optim: OptimConfig = OptimConfig(lr=2e-5)
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    engine: EngineConfig = EngineConfig()
    """Precision, threads, micro-batches."""
    save_every: int = Field(default=50, ge=1)
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of the data order."""
