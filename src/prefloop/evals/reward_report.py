"""All figures of a reward on held-out comparisons and on answers changed on purpose."""

import math
from collections.abc import Sequence

from prefloop.data.heldout import distinct_pairs
from prefloop.evals.ngrams import TfIdf
from prefloop.evals.reward_answers import (
    best_of_figures,
    disagreement_map,
    grouped,
    length_correlation,
    novelty,
    probe_figures,
)
from prefloop.evals.reward_figures import LEVEL_EACH, RewardFigures, Vote
from prefloop.evals.reward_model import measure
from prefloop.evals.reward_pairs import (
    Known,
    accuracies,
    agrees,
    by_key,
    control_hits,
    difference,
    easy_and_hard,
    fitted_calibration,
    group_leads,
    known_pairs,
    label_tastes,
    over_prompts,
    pooled,
    separability,
    vote_agreement,
    vote_ceiling,
    vote_shares,
)
from prefloop.evals.reward_plan import Scored
from prefloop.ops.statistics import cluster_mean, pooled_std
from prefloop.types import Preference, PrefloopError


def reward_figures(
    training: Sequence[Preference],
    heldout: Sequence[Preference],
    scored: Sequence[Scored],
    votes: Sequence[Vote] = (),
) -> RewardFigures:
    """scored: the answers of `reward_plan.plan` with their scores; votes: single ones, where known.

    PrefloopError when the reward tells no two answers to a prompt apart, or no held-out pair has a majority.
    """
    role = {name: [one for one in scored if one.ask.role == name] for name in ("heldout", "train", "new", "probe")}
    spread = pooled_std(grouped(role["heldout"], lambda one: one.score))
    if not spread > 1e-9:
        raise PrefloopError("The reward gives all answers to a held-out prompt the same score; nothing can be said.")
    pairs = known_pairs(heldout, role["heldout"], votes, spread)
    seen = {one.ask.prompt.id for one in role["train"]}
    fitted = known_pairs([p for p in training if p.prompt.id in seen], role["train"], (), spread)
    decided, train = ([known for known in part if known.pair.target != 0.5] for part in (pairs, fitted))
    calibration = fitted_calibration(pairs)
    raw = grouped(role["heldout"], lambda one: one.score if one.raw is None else one.raw)
    gain = spread / pooled_std(raw) if calibration.logits else spread / max(calibration.slope.value, 1e-3)
    held_out = measure([known.pair for known in pairs], gain=gain)
    vectors = TfIdf([item.text for pair in distinct_pairs(training) for item in pair.items])
    controls = control_hits(training, decided, vectors)
    leads = {name: by_key(_lead(decided, hits)) for name, hits in controls.items()}
    voted = [(known, vote) for known in pairs for vote in known.votes if vote.first != 0.5]
    agreement = vote_agreement(voted)
    ceiling = vote_ceiling(agreement)
    singly = [(known.prompt, agrees(known.lead, vote.first)) for known, vote in voted]
    single = pooled(singly, "single votes are not known")
    right, learned = (over_prompts(part, lambda known: known.right) for part in (decided, train))
    easy, hard = easy_and_hard(decided)
    parts = {"all": decided, "easy": easy, "hard": hard}
    surest, least = (over_prompts(part, lambda known: abs(known.lead)) for part in (easy, hard))
    return RewardFigures(
        held_out=held_out,
        spread=spread,
        prompts=len(right),
        simulated=all(known.preference.simulated for known in pairs),
        judges=tuple(sorted({name for known in pairs for name in known.preference.judges})),
        controls={
            name: pooled([(known.prompt, hit) for known, hit in zip(decided, hits, strict=True)])
            for name, hits in controls.items()
        },
        lead={name: cluster_mean(list(own.values()), LEVEL_EACH) for name, own in leads.items()},
        train=pooled([(known.prompt, known.right) for known in train], "no training answers were scored"),
        gap=difference(learned, right),
        agreement=agreement,
        ceiling=ceiling,
        single=single,
        adjusted=(single.value - (1 - ceiling.value)) / (2 * ceiling.value - 1) if ceiling.value > 0.5 else math.nan,
        by=accuracies(decided, voted),
        calibration=calibration,
        separability={name: separability(part) for name, part in parts.items() if part},
        easy=cluster_mean(over_prompts(easy, lambda known: known.right), LEVEL_EACH),
        confidence=difference(surest, least),
        votes=vote_shares(pairs),
        length=length_correlation(pairs, role["heldout"]),
        taste=label_tastes(pairs),
        groups=group_leads(voted),
        probes=probe_figures(role["probe"], role["heldout"], voted, spread),
        best_of=best_of_figures([*role["heldout"], *role["new"]]),
        novelty=novelty(training, role, vectors),
        disagreement=disagreement_map(role, training, vectors, spread),
    )


def _lead(decided: Sequence[Known], hits: Sequence[float]) -> list[tuple[str, float]]:
    return [(known.prompt, known.right - hit) for known, hit in zip(decided, hits, strict=True)]
