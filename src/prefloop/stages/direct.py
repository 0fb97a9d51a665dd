"""Direct preference optimisation (Rafailov et al. 2023) and its relatives: the policy is its own reward model, fitted
on comparisons, or on good and bad answers (KTO, Ethayarajh et al. 2024)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prefloop.configs.direct import DirectConfig
from prefloop.engine.build import build_encoder, build_learner, compute_dtype, load, resolve_checkpoint, use_threads
from prefloop.engine.local import LocalLearner
from prefloop.engine.objectives import resolve_loss
from prefloop.engine.reference import FIELD, with_reference
from prefloop.engine.schedule import rate, take
from prefloop.ops.direct import kto_baseline
from prefloop.run import Run, progress
from prefloop.stages.direct_data import learned
from prefloop.stages.rollouts import GAP
from prefloop.stages.saving import resume, save_final, save_step
from prefloop.types import PrefloopError, Tree

FALLING = (
    "The chosen answers become less likely while the margin grows (likelihood displacement): what is gained may be no "
    "answer of the data. Try a larger direct.beta, direct.nll, a lower learning rate, or loss 'nca' or 'apo_zero'."
)


def run(config: DirectConfig) -> Mapping[str, Any]:
    """Fit the policy; returns the result with its path. The same call continues an interrupted run exactly."""
    parent = resolve_checkpoint(config.policy)
    parents = {"policy": parent, "preferences": config.preferences}
    with Run.open(config.out, config, stage="direct", parents=parents) as run:
        if run.finished:
            return run.result
        use_threads(config.engine)
        loaded = load(config.policy, config.engine)
        data = learned(config, build_encoder(loaded))
        learner = build_learner(loaded, config.engine, config.optim, lora=config.lora, seed=config.seed)
        name, params = config.objective
        free = config.reference_free or getattr(resolve_loss(name)[0], "reference_free", False)
        trees = data.trees if free else with_reference(learner, data.trees)
        mismatched = with_reference(learner, data.mismatched) if data.mismatched else []
        before = with_reference(learner, data.unseen)
        examples = len(trees) * config.epochs
        total = math.ceil(examples / config.batch)
        start, _ = resume(run, learner, parent)
        rows = [dict(row.values) for row in run.metrics()]
        watch, told = max(10, total // 10), False

        with progress(total, "updates", done=start) as bar:
            for step in range(start, total):
                began = time.perf_counter()
                done = step * config.batch
                places = take(range(len(trees)), done, min(config.batch, examples - done), config.seed)
                batch = [trees[place] for place in places]
                if mismatched:
                    params |= kto_batch(learner, batch, [mismatched[place] for place in places])
                metrics = learner.forward_backward(batch, name, params)
                if step == 0 and (apart := metrics.get("logratio/token", 0.0)) > GAP[compute_dtype(config.engine)]:
                    raise PrefloopError(
                        f"Policy and reference differ by {apart:.4f} nats a token before the first update: the kept "
                        "reference log-probs are not this model's; remove them."
                    )
                metrics |= {"kto/baseline": params["baseline"]} if mismatched else {}
                factor = rate(config.optim, step, total)
                metrics |= learner.optim_step(config.optim.lr * factor, config.optim.head_lr * factor)
                run.log(step, metrics | {"time/step": time.perf_counter() - began})
                rows.append(metrics)
                if not told and (step + 1) % watch == 0 and (told := displaced(rows[-2 * watch :])):
                    logging.getLogger(__name__).warning("Update %d: %s", step + 1, FALLING)
                if (step + 1) % config.save_every == 0 and step + 1 < total:
                    save_step(run, learner, step, parent, {})
                bar.advance(1, f"loss {metrics['loss/train']:.3f}")

        figures = data.measured(run, learner, before)
        if not told and figures["displacement_rejected"] < figures["displacement_chosen"] < 0:
            logging.getLogger(__name__).warning("Held-out answers: %s", FALLING)
        checkpoint = save_final(run, learner, total, parent, "policy")
        return run.finish({"checkpoint": checkpoint, **figures})


def kto_batch(learner: LocalLearner, batch: Sequence[Tree], mismatched: Sequence[Tree]) -> dict[str, Any]:
    """What KTO has to know of a whole batch before any of it is learned: z0, and its good and bad answers."""
    ratios = _log_ratios(mismatched, learner)
    labels = [node.fields["good"][0] for tree in batch for node in tree.nodes[1:]]
    good = sum(label > 0.5 for label in labels)
    return {"baseline": kto_baseline(torch.tensor(ratios)), "counts": (good, len(labels) - good)}


def _log_ratios(trees: Sequence[Tree], learner: LocalLearner) -> list[float]:
    """log pi(y|x) - log pi_ref(y|x) of each answer, in order of trees and nodes."""
    return [
        float((reading.logprobs[node] - tree.nodes[node].fields[FIELD]).sum())
        for tree, reading in zip(trees, learner.forward(trees, {"logprobs"}), strict=True)
        for node in range(1, len(tree.nodes))
    ]


def displaced(rows: Sequence[Mapping[str, float]]) -> bool:
    """Whether in the second half of these metrics the chosen answers are less likely than at the start and than in the
    first half, while the margin is larger (likelihood displacement; Razin et al. 2024, arXiv 2410.08847). Where no
    reference is read the start is not known, and the answer is no."""
    half = len(rows) // 2
    if half < 1 or "logratio/chosen" not in rows[-1]:
        return False
    chosen, margin = (
        [float(np.mean([row[key] for row in part])) for part in (rows[:half], rows[-half:])]
        for key in ("logratio/chosen", "margin/train")
    )
    return chosen[1] < min(chosen[0], 0.0) and margin[1] > margin[0]
