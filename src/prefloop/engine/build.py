"""Engines from configuration: the one place that decides device, precision and threads."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.data.chat import closing_token
from prefloop.data.trees import Encoder
from prefloop.engine.generate import LocalSampler
from prefloop.engine.local import LocalLearner, LocalScorer, Pooling
from prefloop.models.checkpoint import MANIFEST, load_head, load_members, read_checkpoint
from prefloop.models.heads import ScalarHead, value_head
from prefloop.models.layers import freeze_below_top
from prefloop.models.load import LoadedModel, context_length, load_model, stop_token_ids
from prefloop.models.lora import attach
from prefloop.types import Checkpoint, PrefloopError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MADV_HUGEPAGE = 14  # of Linux's mman.h
LARGE = 2**21  # bytes of a large page
RESERVED = 8  # pieces of half a GiB to lie in large pages: address space, not memory, until they are written to


def compute_dtype(engine: EngineConfig) -> torch.dtype:
    """bf16 or fp32 as configured; auto takes bf16 on a GPU that has it and on CPUs with bf16 products (AVX512-BF16,
    AMX), fp32 elsewhere, where bf16 is emulated and many times slower."""
    if engine.dtype != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[engine.dtype]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if fast else torch.float32


def use_threads(engine: EngineConfig) -> None:
    """Set the CPU threads of this process, explicitly: oversubscription costs far more than a missing core. On Linux
    freed memory stays with the process, because getting a step's tensors from the system again and again costs more."""
    torch.set_num_threads(engine.threads or available_cores())
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        _ask_for_large_pages()


@cache
def _ask_for_large_pages() -> None:
    """What this process allocates from now on lies in large pages, where the system gives those to who asks: products
    that read each weight once, as a step of decoding does, then wait less for addresses."""
    libc, size = ctypes.CDLL(None), 2**29
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pieces = [piece for _ in range(RESERVED) if (piece := libc.malloc(size))]
    for piece in pieces:
        start = -(-piece // LARGE) * LARGE
        libc.madvise(start, piece + size - start, MADV_HUGEPAGE)
    for piece in pieces:
        libc.free(piece)


def available_cores() -> int:
    """Cores that this process may use (all of the machine's where the system does not tell)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(name: str, engine: EngineConfig, kind: Literal["policy", "reward"] = "policy") -> LoadedModel:
    """A model on the GPU where there is one, else on the CPU, in the configured precision.

    One of our checkpoints is verified first: PrefloopError when it is damaged, or not of this kind."""
    folder = resolve_checkpoint(name)
    if (Path(folder) / MANIFEST).is_file() and (found := read_checkpoint(folder, verify=True).kind) != kind:
        wanted = {"policy": "policy", "reward": "reward model"}[kind]
        raise PrefloopError(f"{folder} is a {found} checkpoint, not a {wanted}; give another run's folder.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(folder, dtype=compute_dtype(engine), device=device, trust_remote_code=engine.trust_remote_code)


def resolve_checkpoint(name: str) -> str:
    """A run folder stands for the checkpoint that it ended with; anything else is taken as it is. PrefloopError for a
    run that has none."""
    final = Path(name) / "checkpoint"
    if (final / MANIFEST).is_file():
        return str(final)
    if (Path(name) / "run.json").is_file():
        raise PrefloopError(f"{name} is a run without a checkpoint; let it finish, or give one that trains a model.")
    return name


def build_encoder(loaded: LoadedModel) -> Encoder:
    """The model's tokenizer with the stop token that its chat template ends an answer with (else its end of text), and
    its context."""
    tokenizer = loaded.tokenizer
    stops = stop_token_ids(tokenizer, loaded.model)
    closing = closing_token(tokenizer, stops)
    stop = closing if closing is not None else tokenizer.eos_token_id if tokenizer.eos_token_id in stops else min(stops)
    return Encoder(tokenizer, stop, context_length(loaded.model))


def build_sampler(
    loaded: LoadedModel, checkpoint: str, engine: EngineConfig, *, max_rows: int = 128, int8: bool = False
) -> LocalSampler:
    return LocalSampler(
        loaded,
        context=context_length(loaded.model),
        max_rows=max_rows,
        cache_mb=engine.cache_mb,
        checkpoint=checkpoint,
        int8=int8,
    )


def build_learner(
    loaded: LoadedModel,
    engine: EngineConfig,
    optim: OptimConfig,
    *,
    lora: LoraConfig | None = None,
    head: ScalarHead | None = None,
    pooling: Pooling = "last",
    seed: int = 0,
    ema: float | None = None,
) -> LocalLearner:
    """A learner of whole weights, or of adapters, with a scalar head if given; `ema`: see RolloutConfig."""
    if lora is not None:
        attach(loaded.model, rank=lora.rank, alpha=lora.alpha, last_layers=optim.last_layers, seed=seed)
    elif optim.last_layers is not None:
        freeze_below_top(loaded.model, optim.last_layers)
    if head is not None:
        head.to(next(loaded.model.parameters()).device)
    return LocalLearner(
        loaded,
        optim=optim,
        token_budget=engine.token_budget,
        head=head,
        pooling=pooling,
        lora=lora is not None,
        recompute=engine.recompute,
        compiles=engine.compile,
        ema=ema,
    )


def build_scorer(loaded: LoadedModel, engine: EngineConfig) -> LocalScorer:
    """A frozen model without a head: the reference."""
    return LocalScorer(loaded, token_budget=engine.token_budget, compiles=engine.compile)


def build_reward_scorer(name: str, engine: EngineConfig) -> tuple[LocalScorer, Checkpoint]:
    """A reward model from its checkpoint or run folder, with its heads; the record holds pooling, gains and biases."""
    folder = resolve_checkpoint(name)
    loaded, record = load(folder, engine, "reward"), read_checkpoint(folder)
    device = next(loaded.model.parameters()).device
    scorer = LocalScorer(
        loaded,
        token_budget=engine.token_budget,
        head=load_head(folder).to(device),
        pooling=record.details["pooling"],
        compiles=engine.compile,
    )
    scorer.members = [member.to(device) for member in load_members(folder)]
    return scorer, record


def build_critic(name: str, encoder: Encoder, engine: EngineConfig, optim: OptimConfig) -> LocalLearner:
    """A value model of its own: a reward model, whose head starts with its gain and bias (Stiennon et al. 2020), or a
    policy with a head at 0. Raises PrefloopError where its tokens are not `encoder`'s."""
    folder = resolve_checkpoint(name)
    ours = (Path(folder) / MANIFEST).is_file() and read_checkpoint(folder).kind == "reward"
    loaded = load(name, engine, "reward" if ours else "policy")
    if loaded.tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        raise PrefloopError(f"The critic {folder} has other tokens than the policy; give one of the policy's family.")
    head = value_head(loaded.model.config.get_text_config().hidden_size)
    if ours:
        details, head = read_checkpoint(folder).details, load_head(folder)
        with torch.no_grad():
            head.weight.mul_(details.get("gain", 1.0))
            head.bias.mul_(details.get("gain", 1.0)).add_(details.get("bias", 0.0))
    return build_learner(loaded, engine, optim, head=head)


def build_adapted_scorer(record: Checkpoint, engine: EngineConfig) -> LocalScorer:
    """The trunk that a reward model with adapters began from, with adapters of its shape, for it and others alike."""
    loaded, lora = load(record.parent, engine), record.details["lora"]
    attach(loaded.model, rank=lora["rank"], alpha=lora["alpha"], last_layers=lora["last_layers"], seed=0)
    pooling = record.details["pooling"]
    return LocalScorer(loaded, token_budget=engine.token_budget, pooling=pooling, compiles=engine.compile)


def require_base(folder: Path, record: Checkpoint, parent: str) -> None:
    """Refuse to continue from a checkpoint that began from another model."""
    if record.parent != parent:
        raise PrefloopError(
            f"The checkpoint {folder} began from {record.parent}, not from {parent}; use another run name or restore "
            "the model."
        )
