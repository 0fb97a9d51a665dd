"""What a process reward model learns from, and how it is measured on held-out answers (Lightman et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

from prefloop.configs.reward import RewardConfig
from prefloop.data.heldout import shuffled_steps, split_steps
from prefloop.data.jsonl import write_jsonl
from prefloop.data.sources import load_step_labels
from prefloop.data.trees import Encoder, step_trees
from prefloop.engine.local import LocalLearner
from prefloop.engine.schedule import derived_seed
from prefloop.ops.statistics import expected_calibration_error, share_bootstrap
from prefloop.run import Run


class Steps:
    """Answers with labeled steps, as trees to train on and `unseen` ones."""

    def __init__(self, config: RewardConfig, encoder: Encoder) -> None:
        known = load_step_labels(config.preferences)
        training, heldout = split_steps(known, config.heldout, derived_seed(config.seed, "heldout"))
        if config.shuffle_labels:
            training = shuffled_steps(training, derived_seed(config.seed, "shuffle"))
        self.rule = config.steps
        self.trees = step_trees(training, encoder, self.rule)
        self.unseen = step_trees(heldout, encoder, self.rule)
        self.params: dict[str, float] = {}

    def measured(self, run: Run, learner: LocalLearner) -> tuple[dict[str, Any], dict[str, Any]]:
        """Figures over the held-out steps with a label, and what the checkpoint has to say; each answer's steps with
        what was said of them go into steps.jsonl. `right`: share of the steps that are right, as always saying so would
        have it."""
        rows = []
        for tree, reading in zip(self.unseen, learner.forward(self.unseen, {"steps"}), strict=True):
            for node, logits in reading.steps.items():
                read = np.flatnonzero(tree.nodes[node].fields["weight"])
                labels = np.asarray(tree.nodes[node].fields["label"])[read].tolist()
                said = expit(logits[read].astype(np.float64)).tolist()
                rows.append({"prompt_id": tree.id, "answer": node - 1, "labels": labels, "probabilities": said})
        write_jsonl(run.path / "steps.jsonl", rows)
        clusters: dict[str, list[float]] = {}
        for row in rows:
            right = [(p > 0.5) == (label > 0.5) for p, label in zip(row["probabilities"], row["labels"], strict=True)]
            clusters.setdefault(row["prompt_id"], []).extend(map(float, right))
        low, high = share_bootstrap(list(clusters.values()))
        said, labels = (np.concatenate([row[name] for row in rows]) for name in ("probabilities", "labels"))
        figures = {
            "accuracy": float(np.mean(np.concatenate(list(clusters.values())))),
            "accuracy_low": low,
            "accuracy_high": high,
            "right": float(np.mean(labels > 0.5)),
            "ece": expected_calibration_error(said, labels),
            "steps_heldout": int(labels.size),
            "steps_train": sum(sum(map(bool, n.fields["weight"])) for tree in self.trees for n in tree.nodes[1:]),
        }
        return figures, {"steps": self.rule}
