"""What the direct stage learns from, as trees, and how the policy is measured on what was held out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prefloop.configs.direct import USE_MARGINS, DirectConfig
from prefloop.data.heldout import by_prompt, distinct_pairs, shuffled, split, split_verdicts
from prefloop.data.jsonl import read_verdicts
from prefloop.data.sources import holds_verdicts, load_preferences
from prefloop.data.trees import Encoder, answer_tree, mismatched_trees, preference_trees, verdict_trees
from prefloop.data.verdicts import from_preferences, shuffled_verdicts
from prefloop.engine.direct_losses import Answers, implicit_rewards
from prefloop.engine.local import LocalLearner
from prefloop.engine.reference import FIELD
from prefloop.engine.schedule import derived_seed
from prefloop.evals.reward_model import heldout_pairs
from prefloop.run import Run
from prefloop.stages.measuring import heldout_figures
from prefloop.types import PrefloopError, Tree, Verdict

BALANCE = (1.0, 1.5)  # of desirable x good answers to undesirable x bad ones (Ethayarajh et al. 2024, eq. 9)


class Comparisons:
    """Comparisons as trees to train on, with the loss kto as good and bad answers; and `unseen` answers, held out."""

    def __init__(self, config: DirectConfig, encoder: Encoder) -> None:
        known = load_preferences(config.preferences, skip_bad=config.skip_bad)
        if not config.margins:
            known = [dataclasses.replace(preference, margin=0.0) for preference in known]
        names = {config.loss, *config.also}
        if any(preference.margin for preference in known) and not all(n in USE_MARGINS or ":" in n for n in names):
            raise PrefloopError(
                f"Comparisons carry margins, which {' or '.join(sorted(names - USE_MARGINS))} cannot use; "
                "set direct.margins = false."
            )
        self.config = config
        training, self.heldout = split(known, config.heldout, derived_seed(config.seed, "heldout"))
        if config.shuffle_labels:
            training = shuffled(training, derived_seed(config.seed, "shuffle"))
        self.answers = by_prompt([(p.prompt, item) for p in distinct_pairs(self.heldout) for item in p.items])
        self.unseen = [answer_tree(prompt, items, encoder) for prompt, items in self.answers.values()]
        self.mismatched: list[Tree] = []
        if config.loss == "kto":
            self.trees, self.mismatched, self.counts = _judged(config, from_preferences(training), encoder)
        else:
            self.trees = preference_trees(training, encoder)
            self.counts = {"pairs_train": sum(len(tree.pairs) for tree in self.trees)}

    def measured(self, run: Run, learner: LocalLearner, before: Sequence[Tree]) -> dict[str, Any]:
        """How well the implicit rewards say which held-out answer is preferred; and how far the log-probs of preferred
        and other answers moved, in nats an answer, over the pairs that prefer one. `before`: `unseen` with the
        log-probs that the policy began with."""
        rewards, moved = _rewards(self.config, learner, before)
        keys = [(prompt.id, item.id) for prompt, items in self.answers.values() for item in items]
        figures = heldout_figures(run, heldout_pairs(self.heldout, dict(zip(keys, rewards, strict=True))))
        ratio = dict(zip(keys, moved, strict=True))
        sides: list[list[float]] = [[], []]
        for pair in distinct_pairs(self.heldout):
            if pair.target != 0.5:
                order = pair.items if pair.target is None or pair.target > 0.5 else pair.items[::-1]
                for side, item in zip(sides, order, strict=True):
                    side.append(ratio[pair.prompt.id, item.id])
        return {**figures, **_displacement(*sides), **self.counts}


class Verdicts:
    """Good and bad answers as trees to train on, with mismatched ones, and `unseen` ones, held out."""

    def __init__(self, config: DirectConfig, encoder: Encoder) -> None:
        known = read_verdicts(config.preferences)
        training, heldout = split_verdicts(known, config.heldout, derived_seed(config.seed, "heldout"))
        if len({verdict.good for verdict in heldout}) < 2:
            raise PrefloopError(f"The {len(heldout)} held-out answers are all good or all bad; collect more of both.")
        if config.shuffle_labels:
            training = shuffled_verdicts(training, derived_seed(config.seed, "shuffle"))
        self.config = config
        self.trees, self.mismatched, self.counts = _judged(config, training, encoder)
        self.unseen = verdict_trees(heldout, encoder)

    def measured(self, run: Run, learner: LocalLearner, before: Sequence[Tree]) -> dict[str, Any]:
        """`auc`: the probability that the implicit reward of a good held-out answer is above that of a bad one, ties
        half; and displacement as of comparisons. Every answer becomes a row of samples.jsonl."""
        rewards, moved = _rewards(self.config, learner, before)
        good = np.array([node.fields["good"][0] > 0.5 for tree in before for node in tree.nodes[1:]])
        names = [tree.id for tree in before for _ in tree.nodes[1:]]
        (run.path / "samples.jsonl").unlink(missing_ok=True)
        for name, label, reward in zip(names, good.tolist(), rewards, strict=True):
            run.sample(0, {"prompt_id": name, "good": label, "score": reward})
        lead = np.array(rewards)[good][:, None] - np.array(rewards)[~good]
        figures = {"auc": float(np.mean(np.where(lead == 0, 0.5, lead > 0)))}
        figures |= {"good_heldout": int(good.sum()), "bad_heldout": int((~good).sum())}
        return {**figures, **_displacement(np.array(moved)[good], np.array(moved)[~good]), **self.counts}


def learned(config: DirectConfig, encoder: Encoder) -> Comparisons | Verdicts:
    """What `config.preferences` holds. Raises PrefloopError for good and bad answers with another loss than kto."""
    if not holds_verdicts(config.preferences):
        return Comparisons(config, encoder)
    if config.loss != "kto":
        raise PrefloopError(
            f"{config.preferences}: answers with labels good or bad are what the loss kto learns from; set "
            f"direct.loss = 'kto', or give comparisons."
        )
    return Verdicts(config, encoder)


def _judged(
    config: DirectConfig, verdicts: Sequence[Verdict], encoder: Encoder
) -> tuple[list[Tree], list[Tree], dict[str, Any]]:
    trees = verdict_trees(verdicts, encoder)
    rng = np.random.Generator(np.random.Philox(derived_seed(config.seed, "mismatched")))
    mismatched = mismatched_trees(trees, encoder, rng.permutation(len(trees)).tolist())
    good = sum(verdict.good for verdict in verdicts)
    bad = len(verdicts) - good
    assert config.desirable and config.undesirable
    balance = config.desirable * good / (config.undesirable * bad) if bad else None
    if balance is not None and not BALANCE[0] - 1e-6 <= balance <= BALANCE[1] + 1e-6:
        logging.getLogger(__name__).warning(
            "%d good and %d bad answers: desirable x good is %.2f times undesirable x bad, best is %g to %g; "
            "direct.desirable = %.3g would make it 1.",
            *(good, bad, balance, *BALANCE, config.undesirable * bad / max(good, 1)),
        )
    return trees, mismatched, {"good_train": good, "bad_train": bad}


def _rewards(config: DirectConfig, learner: LocalLearner, before: Sequence[Tree]) -> tuple[list[float], list[float]]:
    """Implicit reward of each answer, and how far its log-prob moved, in order of trees and nodes."""
    columns = [
        (float(reading.logprobs[node].sum()), sum(tree.nodes[node].fields[FIELD]), len(tree.nodes[node].tokens))
        for tree, reading in zip(before, learner.forward(before, {"logprobs"}), strict=True)
        for node in range(1, len(tree.nodes))
    ]
    answers = Answers(*torch.tensor(columns, dtype=torch.float64).T)
    params = {key: value for key, value in config.model_dump().items() if value is not None}
    return implicit_rewards(config.loss, answers, params).tolist(), answers.ratio.tolist()


def _displacement(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    return {"displacement_chosen": float(np.mean(chosen)), "displacement_rejected": float(np.mean(rejected))}
