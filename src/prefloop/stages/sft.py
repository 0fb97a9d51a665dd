"""Supervised fine-tuning on demonstrations (Ouyang et al. 2022, step 1): next-token loss on the answers only."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from prefloop.configs.sft import SFTConfig
from prefloop.data.forest import tree_tokens
from prefloop.data.sources import load_demonstrations
from prefloop.data.trees import demonstration_trees
from prefloop.engine.build import build_encoder, build_learner, load, resolve_checkpoint, use_threads
from prefloop.engine.schedule import rate, take
from prefloop.run import Run, progress
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import PrefloopError


def run(config: SFTConfig) -> Mapping[str, Any]:
    """Fine-tune; returns the result with the checkpoint's path. The same call continues an interrupted run."""
    parent = resolve_checkpoint(config.model)
    with Run.open(config.out, config, stage="sft", parents={"model": parent}) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.model, config.engine)
        encoder = build_encoder(loaded)
        demonstrations = load_demonstrations(config.demonstrations)
        trees = [tree for d in demonstrations for tree in demonstration_trees(d, encoder)]
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed)
        examples = len(trees) * config.epochs
        total = math.ceil(examples / config.batch)
        start, _ = resume(run, learner, parent)

        with progress(total, "updates", done=start) as bar:
            for step in range(start, total):
                began = time.perf_counter()
                done = step * config.batch
                batch = take(trees, done, min(config.batch, examples - done), config.seed)
                metrics = learner.forward_backward(batch, "sft", {})
                first = metrics["loss/train"]
                if step == 0 and first > 2 * math.log(encoder.tokenizer.vocab_size):
                    raise PrefloopError(f"The first loss is {first:.1f} nats a token: tokenizer and model differ.")
                factor = rate(config.optim, step, total)
                metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                tokens = sum(map(tree_tokens, batch))
                run.log(step, metrics | {"time/step": time.perf_counter() - began, "tokens": tokens})
                if (step + 1) % config.save_every == 0 and step + 1 < total:
                    save_step(run, learner, step, parent, {})
                bar.advance(1, f"loss {metrics['loss/train']:.3f}")

        checkpoint = save_final(run, learner, total, parent, "policy")
        return run.finish(
            {"checkpoint": checkpoint, "examples": len(trees), "tokens": sum(map(tree_tokens, trees)) * config.epochs}
        )
