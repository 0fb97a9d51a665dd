"""Figures of a reward on single answers: changed ones, longer ones, the best of several, new ones, disagreement."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from prefloop.evals.ngrams import TfIdf, distances
from prefloop.evals.probes import PROBES
from prefloop.evals.reward_figures import LEVEL_EACH, BestOfN, Disagreement, Length, Novelty, ProbeFigure, Vote
from prefloop.evals.reward_pairs import Known, by_key, length_excess
from prefloop.evals.reward_plan import ORIGINAL, Scored
from prefloop.evals.winrate import outcome
from prefloop.ops.ensembles import best_of_n, disagreement
from prefloop.ops.statistics import Figure, Floats, cluster_mean, cluster_share, pooled_std
from prefloop.types import Preference

_POINTS = 400
_KNOWN = 20_000


def probe_figures(
    probed: Sequence[Scored], heldout: Sequence[Scored], voted: Sequence[tuple[Known, Vote]], spread: float
) -> list[ProbeFigure]:
    originals = {one.ask.prompt.id: one for one in probed if one.ask.probe == ORIGINAL}
    rivals = {(one.ask.prompt.id, one.ask.completion.id): one.score for one in heldout}
    judged: defaultdict[str, set[str]] = defaultdict(set)
    for known, vote in voted:
        if vote.group:
            judged[vote.group].add(known.prompt)
    made = []
    for probe in PROBES:
        shifts, flips = {}, []
        for one in probed:
            if one.ask.probe == probe.name:
                name = one.ask.prompt.id
                before, rival = originals[name].score, rivals[name, one.ask.rival]
                shifts[name] = (one.score - before) / spread
                flips.append(outcome(before, rival) != outcome(one.score, rival))
        of_groups = {group: [shifts[p] for p in prompts if p in shifts] for group, prompts in sorted(judged.items())}
        made.append(
            ProbeFigure(
                name=probe.name,
                family=probe.family,
                expected=probe.expected,
                shift=cluster_mean([[value] for value in shifts.values()], LEVEL_EACH),
                flips=sum(flips) / len(flips) if flips else math.nan,
                groups={group: sum(own) / len(own) for group, own in of_groups.items() if own},
            )
        )
    return made


def best_of_figures(answers: Sequence[Scored]) -> list[BestOfN]:
    groups = [
        np.array([(one.score, one.gold) for one in own], dtype=float)
        for own in by_key((one.ask.prompt.id, one) for one in answers if one.gold is not None).values()
        if len(own) > 1
    ]
    spread = pooled_std([own[:, 1] for own in groups]) if groups else 0.0
    made, n = [], 2
    while spread > 1e-9 and len(held := [own for own in groups if len(own) >= n]) > 1:
        gains = [[(best_of_n(own[:, 0], own[:, 1], [n])[0] - own[:, 1].mean()) / spread] for own in held]
        most = [(best_of_n(own[:, 1], own[:, 1], [n])[0] - own[:, 1].mean()) / spread for own in held]
        made.append(BestOfN(n=n, gain=cluster_mean(gains, LEVEL_EACH), most=float(np.mean(most))))
        n *= 2
    return made


def length_correlation(pairs: Sequence[Known], heldout: Sequence[Scored]) -> Length:
    prompts = list(by_key((one.ask.prompt.id, one) for one in heldout).values())
    none = "no prompt has three answers that differ in words and score"

    def correlation(of: Callable[[Scored], float | None]) -> Figure:
        found = [[r] for own in prompts if (r := _correlation(own, of)) is not None]
        return cluster_mean(found) if len(found) > 1 else Figure(value=math.nan, reason=none)

    return Length(correlation=correlation(_score), gold=correlation(lambda one: one.gold), excess=length_excess(pairs))


def _correlation(answers: Sequence[Scored], of: Callable[[Scored], float | None]) -> float | None:
    values = [(len(one.ask.completion.text.split()), of(one)) for one in answers]
    known = np.array([(words, value) for words, value in values if value is not None], dtype=float)
    if len(known) < 3 or not (known.std(axis=0) > 1e-12).all():
        return None
    return float(np.corrcoef(known.T)[0, 1])


def novelty(training: Sequence[Preference], role: Mapping[str, Sequence[Scored]], vectors: TfIdf) -> Novelty | None:
    if not role["new"]:
        return None
    old, new = (_distances(role[name], training, vectors) for name in ("heldout", "new"))
    far = np.quantile(old, 0.99)
    names = [one.ask.prompt.id for one in role["new"]]
    trained = [one.score for one in role["train"]]
    highest = np.quantile(trained, 0.99) if trained else math.nan
    above = [float(one.score > highest) for one in role["new"]]
    unknown = Figure(value=math.nan, reason="no answers to training prompts were scored")
    return Novelty(
        distance_heldout=float(old.mean()),
        distance_new=float(new.mean()),
        far=cluster_share(list(by_key(zip(names, (new > far).tolist(), strict=True)).values()), LEVEL_EACH),
        above=cluster_share(list(by_key(zip(names, above, strict=True)).values()), LEVEL_EACH) if trained else unknown,
    )


def _distances(answers: Sequence[Scored], training: Sequence[Preference], vectors: TfIdf) -> Floats:
    """From the nearest of the training answers, of which so many are drawn as can be compared in memory."""
    texts = list(dict.fromkeys(item.text for preference in training for item in preference.items))
    known = texts if len(texts) <= _KNOWN else random.Random(0).sample(texts, _KNOWN)
    return distances(vectors([one.ask.completion.text for one in answers]), vectors(known))


def disagreement_map(
    role: Mapping[str, Sequence[Scored]], training: Sequence[Preference], vectors: TfIdf, spread: float
) -> Disagreement | None:
    if not all(one.members for one in role["heldout"]):
        return None

    def stds(answers: Sequence[Scored]) -> list[float]:
        scores = np.array([list(one.members.values()) for one in answers], dtype=float)
        return (disagreement(scores.T) / spread).tolist() if answers else []

    def means(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
        return {name: sum(own) / len(own) for name, own in sorted(by_key(rows).items()) if name}

    of = {name: stds(answers) for name, answers in role.items()}
    points = [
        (float(distance), std, name)
        for name in ("heldout", "new")
        for distance, std in zip(_distances(role[name], training, vectors) if role[name] else (), of[name], strict=True)
    ]
    twice = 2 * float(np.mean(of["heldout"]))
    rises = by_key((one.ask.prompt.id, std - twice) for one, std in zip(role["new"], of["new"], strict=True))
    return Disagreement(
        by_role=means((name, std) for name in ("train", "heldout", "new") for std in of[name]),
        by_slice=means((one.ask.prompt.slice, std) for one, std in zip(role["heldout"], of["heldout"], strict=True)),
        by_probe=means((one.ask.probe, std) for one, std in zip(role["probe"], of["probe"], strict=True)),
        rise=cluster_mean(list(rises.values()), LEVEL_EACH),
        points=random.Random(0).sample(points, min(_POINTS, len(points))),
    )


def _score(one: Scored) -> float:
    return one.score


def grouped(scored: Sequence[Scored], of: Callable[[Scored], float]) -> list[list[float]]:
    return list(by_key((one.ask.prompt.id, of(one)) for one in scored).values())
