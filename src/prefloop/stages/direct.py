"""Direct preference optimisation (Rafailov et al. 2023): the policy is its own reward model, fitted on comparisons."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from prefloop.configs.direct import DirectConfig
from prefloop.data.heldout import by_prompt, distinct_pairs, shuffled, split
from prefloop.data.sources import load_preferences
from prefloop.data.trees import answer_tree, preference_trees
from prefloop.engine.build import build_encoder, build_learner, compute_dtype, load, resolve_checkpoint, use_threads
from prefloop.engine.reference import with_reference
from prefloop.engine.schedule import derived_seed, rate, take
from prefloop.evals.reward_model import heldout_pairs
from prefloop.run import Run, progress
from prefloop.stages.measuring import heldout_figures
from prefloop.stages.rollouts import GAP
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import PrefloopError


def run(config: DirectConfig) -> Mapping[str, Any]:
    """Fit the policy; returns the result with its path. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    parents = {"policy": parent, "preferences": config.preferences}
    with Run.open(config.out, config, stage="direct", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        encoder = build_encoder(loaded)
        known = load_preferences(config.preferences)
        training, heldout = split(known, config.heldout, derived_seed(config.seed, "heldout"))
        if config.shuffle_labels:
            training = shuffled(training, derived_seed(config.seed, "shuffle"))
        answers = by_prompt([(p.prompt, item) for p in distinct_pairs(heldout) for item in p.items])
        measured = [answer_tree(prompt, items, encoder) for prompt, items in answers.values()]
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed)
        trees = with_reference(learner, preference_trees(training, encoder))
        before = with_reference(learner, measured)
        examples = len(trees) * config.epochs
        total = math.ceil(examples / config.batch)
        start, _ = resume(run, learner, parent)

        with progress(total, "updates", done=start) as bar:
            for step in range(start, total):
                began = time.perf_counter()
                done = step * config.batch
                batch = take(trees, done, min(config.batch, examples - done), config.seed)
                metrics = learner.forward_backward(batch, "dpo", {"beta": config.beta})
                if step == 0 and (apart := metrics["logratio/token"]) > GAP[compute_dtype(config.engine)]:
                    raise PrefloopError(
                        f"Policy and reference differ by {apart:.4f} nats a token before the first update: the kept "
                        "reference log-probs are not this model's; remove them."
                    )
                factor = rate(config.optim, step, total)
                metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                run.log(step, metrics | {"time/step": time.perf_counter() - began})
                if (step + 1) % config.save_every == 0 and step + 1 < total:
                    save_step(run, learner, step, parent, {})
                bar.advance(1, f"loss {metrics['loss/train']:.3f}")

        scores = {}
        for (prompt, items), tree, new in zip(
            answers.values(), before, learner.forward(before, {"logprobs"}), strict=True
        ):
            for node, item in enumerate(items, 1):
                log_ratio = new.logprobs[node] - tree.nodes[node].fields["reference_logprobs"]
                scores[prompt.id, item.id] = config.beta * float(log_ratio.sum())
        figures = heldout_figures(run, heldout_pairs(heldout, scores))
        checkpoint = save_final(run, learner, total, parent, "policy")
        return run.finish({"checkpoint": checkpoint, **figures, "pairs_train": sum(len(tree.pairs) for tree in trees)})
