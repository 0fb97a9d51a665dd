"""Engines from configuration: precision, threads, and checkpoints that fit."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.engine import build
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.tiny import CONTEXT, tiny_model, tiny_tokenizer
from prefloop.types import Checkpoint, PrefloopError

FP32 = EngineConfig(dtype="fp32", threads=1)


def checkpoint(folder: Path, kind: str) -> Path:
    record = Checkpoint(
        path="",
        kind="reward" if kind == "reward" else "policy",
        step=3,
        parent="tiny",
        config_hash="",
        details={"pooling": "mean", "gain": 2.0, "bias": 1.0} if kind == "reward" else {},
    )
    head = reward_head(16, 0) if kind == "reward" else None
    save_checkpoint(folder, record=record, model=tiny_model(width=16), tokenizer=tiny_tokenizer(), head=head)
    return folder


def test_precision() -> None:
    assert build.compute_dtype(EngineConfig(dtype="bf16")) == torch.bfloat16
    assert build.compute_dtype(FP32) == torch.float32
    assert build.compute_dtype(EngineConfig()) in (torch.float32, torch.bfloat16)
    assert next(build.load("tiny", EngineConfig(dtype="bf16")).model.parameters()).dtype == torch.bfloat16


def test_threads() -> None:
    build.use_threads(EngineConfig(threads=2))
    assert torch.get_num_threads() == 2
    build.use_threads(EngineConfig())
    assert torch.get_num_threads() == build.available_cores() >= 1


PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not PAGES.exists() or "[never]" in PAGES.read_text() or platform.libc_ver()[0] != "glibc",
    reason="this system gives no large pages to who asks",
)
def test_what_is_allocated_lies_in_large_pages() -> None:
    code = """
import torch
from pathlib import Path
from prefloop.configs.shared import EngineConfig
from prefloop.engine.build import use_threads
use_threads(EngineConfig(threads=1))
held = torch.ones(2**25)
print(next(line.split()[1] for line in Path("/proc/self/smaps_rollup").open() if line.startswith("AnonHuge")))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) >= 64 * 1024  # of 128 MiB


def test_a_run_folder_stands_for_its_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run" / "checkpoint", "policy")
    assert build.resolve_checkpoint(str(tmp_path / "run")) == str(tmp_path / "run" / "checkpoint")
    assert build.resolve_checkpoint("smollm2-135m") == "smollm2-135m"
    assert build.resolve_checkpoint(str(tmp_path)) == str(tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(PrefloopError, match="is a run without a checkpoint"):
        build.resolve_checkpoint(str(tmp_path))


def test_encoder_and_sampler_take_stop_and_context_from_the_model() -> None:
    loaded = build.load("tiny", FP32)
    encoder, sampler = build.build_encoder(loaded), build.build_sampler(loaded, "name", FP32, max_rows=3)
    assert (encoder.stop, encoder.context) == (257, CONTEXT)
    assert (sampler.context, sampler.max_rows, sampler.checkpoint) == (CONTEXT, 3, "name")


def test_a_learner_of_adapters_trains_nothing_else() -> None:
    loaded = build.load("tiny", FP32)
    everything = sum(p.numel() for p in loaded.model.parameters())
    learner = build.build_learner(loaded, FP32, OptimConfig(lr=1.0), lora=LoraConfig(rank=2, alpha=4))
    assert 0 < sum(w.numel() for w in learner.weights) < everything / 10
    whole = build.build_learner(build.load("tiny", FP32), FP32, OptimConfig(lr=1.0))
    assert sum(w.numel() for w in whole.weights) == everything


def test_a_reward_scorer_is_its_checkpoint(tmp_path: Path) -> None:
    scorer, record = build.build_reward_scorer(str(checkpoint(tmp_path / "run" / "checkpoint", "reward").parent), FP32)
    assert record.details == {"pooling": "mean", "gain": 2.0, "bias": 1.0}
    assert scorer.pooling == "mean" and scorer.head is not None
    assert torch.equal(scorer.head.weight, reward_head(16, 0).weight)
    with pytest.raises(PrefloopError, match="is a policy checkpoint, not a reward model"):
        build.build_reward_scorer(str(checkpoint(tmp_path / "policy", "policy")), FP32)


def test_a_checkpoint_of_another_model_is_not_continued(tmp_path: Path) -> None:
    record = Checkpoint(path="", kind="policy", step=0, parent="tiny", config_hash="")
    build.require_base(tmp_path, record, "tiny")
    with pytest.raises(PrefloopError, match="began from tiny, not from other"):
        build.require_base(tmp_path, record, "other")
