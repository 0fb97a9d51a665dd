"""How often a reward model agrees with real people, fold by fold, beside a TF-IDF pair classifier on the same folds.

    human_accuracy.py DATA --name NAME [--model M] [--rates R ...] [--sizes N ...] [--jobs J] [--fit-only] [--json]

DATA: comparisons that prefloop reads, PandaLM's test set, or FineGrained RLHF's feedback. Prompts are dealt into folds
by their first turn. Each fold's learning rate is chosen on a fifth of its training part, then the model learns from the
whole part (and from N of its pairs) and is measured on the fold. Scores stand in WORK/NAME, so that a run that was cut
off goes on. Prints one JSON object and writes NAME.json and a plot; exits 0 only where the lower bound of the paired
difference to TF-IDF is above -2 points, and that of a model that learned from shuffled labels is not.
"""

import argparse
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.configs.reward import RewardConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.heldout import distinct_pairs
from prefloop.data.jsonl import asked, text_completion, write_atomic, write_jsonl
from prefloop.data.rows import read_rows
from prefloop.data.sources import load_preferences
from prefloop.ops.statistics import calibration_slope, cluster_bootstrap
from prefloop.types import Message, Preference

HERE = Path(__file__).parent
FOLDS = 5
BAR = -0.02
FINE_PAIRS = tuple(combinations(range(4), 2))
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One reward model: learns from the pairs `training`, scores the pairs `measured`."""

    name: str
    training: tuple[int, ...]
    measured: tuple[int, ...]
    rate: float
    epochs: int
    seed: int = 0
    shuffled: bool = False


def read(path: Path) -> list[Preference]:
    """Every compared pair as a preference, its target the share of people for item 0."""
    _, first = next(iter(read_rows(path)))
    if "annotator1" in first:
        found = [_panda(row) for _, row in read_rows(path)]
    elif "prediction 1" in first:
        found = [pair for _, row in read_rows(path) for pair in _fine(row)]
    else:
        found = load_preferences(path, skip_bad=True)
    found = distinct_pairs(found)
    return [replace(pair, group=pair.prompt.id) for pair in found]


def opening(pair: Preference) -> str:
    """The first turn: what begins alike goes into one fold."""
    return next(message.content for message in pair.prompt.messages if message.role == "user")


def _panda(row: Mapping[str, Any]) -> Preference:
    question = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row[name])
    votes = [{1: 1.0, 2: 0.0, 0: 0.5}[row[f"annotator{i}"]] for i in (1, 2, 3)]
    return _pair(question, str(row["response1"]), str(row["response2"]), sum(votes) / 3)


def _fine(row: Mapping[str, Any]) -> Iterable[Preference]:
    answers = [row[f"prediction {i}"] for i in range(1, 5)]
    for (a, b), better in zip(FINE_PAIRS, row["preference"], strict=True):
        yield _pair(row["question"], answers[a], answers[b], {1: 1.0, 2: 0.0, 0: 0.5}[better])


def _pair(question: str, a: str, b: str, target: float) -> Preference:
    prompt = asked((Message(role="user", content=question),), "question", "a row")
    return Preference(prompt=prompt, items=(text_completion(prompt, a), text_completion(prompt, b)), target=target)


def dealt(groups: Sequence[str], seed: int) -> Floats:
    """The fold of each pair: groups are shuffled and dealt in turn."""
    names = sorted(set(groups))
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    fold = {names[place]: turn % FOLDS for turn, place in enumerate(order)}
    return np.array([fold[group] for group in groups])


def fit(job: Job, pairs: Sequence[Preference], work: Path, model: str, threads: int) -> None:
    """Train by the reward stage and keep in WORK/job.json which pairs were measured and [score a, score b] of each."""
    from prefloop.stages.reward import run  # loads torch, which the parent does without

    folder = work / job.name
    marked = [replace(pairs[i], prompt=replace(pairs[i].prompt, split="train")) for i in job.training]
    marked += [replace(pairs[i], prompt=replace(pairs[i].prompt, split="dev")) for i in job.measured]
    write_jsonl(work / f"{job.name}.jsonl", marked)
    config = RewardConfig(
        out=str(folder),
        model=model,
        preferences=str(work / f"{job.name}.jsonl"),
        optim=OptimConfig(lr=job.rate),
        epochs=job.epochs,
        save_every=10**6,
        shuffle_labels=job.shuffled,
        seed=job.seed,
        engine=EngineConfig(threads=threads),
    )
    result = run(config)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [[row["score_a"] / result["gain"], row["score_b"] / result["gain"]] for row in rows]
    assert len(scores) == len(job.measured), f"{len(scores)} scores of {len(job.measured)} pairs"
    write_atomic(work / f"{job.name}.json", json.dumps({"measured": job.measured, "scores": scores}))
    shutil.rmtree(folder)
    (work / f"{job.name}.jsonl").unlink()


def leads(work: Path, job: Job) -> Floats:
    """Score of a less score of b, in logits, of a job's measured pairs."""
    known = json.loads((work / f"{job.name}.json").read_text())
    if known["measured"] != list(job.measured):
        raise SystemExit(f"human_accuracy.py: {work / job.name}.json holds the scores of other pairs; remove {work}.")
    scores = np.array(known["scores"])
    return scores[:, 0] - scores[:, 1]


def run_all(jobs: Sequence[Job], pairs: Sequence[Preference], chosen: argparse.Namespace, work: Path) -> None:
    """Fit the jobs whose scores do not stand there yet, several at once, cores shared among them."""
    waiting = [job for job in jobs if not (work / f"{job.name}.json").is_file()]
    threads = max(1, len(os.sched_getaffinity(0)) // chosen.jobs)
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        done = {pool.submit(fit, job, pairs, work, chosen.model, threads): job for job in waiting}
        for count, future in enumerate(as_completed(done), 1):
            future.result()
            print(f"{count} of {len(waiting)}: {done[future].name}", file=sys.stderr, flush=True)


def log_loss(lead: Floats, target: Floats) -> float:
    """Of the best sigmoid(s lead): of two rates the better one need not be the one with the better scale."""
    slope, _ = calibration_slope([lead], [target])
    return float(np.mean(np.logaddexp(0, -slope * lead) * target + np.logaddexp(0, slope * lead) * (1 - target)))


def right(lead: Floats, target: Floats) -> Floats:
    """1 where the lead's sign is the majority's, 0.5 for none."""
    return (1 + np.sign(lead) * np.sign(target - 0.5)) / 2


def tfidf(pairs: Sequence[Preference], training: Sequence[int], measured: Sequence[int]) -> Floats:
    """Lead of a logistic regression on the difference of the answers' TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    decided = [i for i in training if pairs[i].target != 0.5]
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectors.fit([item.text for i in decided for item in pairs[i].items])

    def difference(places: Sequence[int]) -> Any:
        return vectors.transform([pairs[i].items[0].text for i in places]) - vectors.transform(
            [pairs[i].items[1].text for i in places]
        )

    wins = np.array([1 if (pairs[i].target or 0) > 0.5 else -1 for i in decided])
    signs = np.where(np.arange(len(decided)) % 2, 1, -1)  # some turned round: a classifier wants both classes
    fitted = LogisticRegression(fit_intercept=False, max_iter=1000)
    fitted.fit(difference(decided).multiply((wins * signs)[:, None]).tocsr(), signs)
    return np.asarray(fitted.decision_function(difference(measured)))


def parts(training: Sequence[int], pairs: Sequence[Preference], seed: int) -> tuple[list[int], list[int]]:
    """Four fifths and one fifth of pairs, no group in both."""
    fold = dealt([opening(pairs[i]) for i in training], seed)
    return [i for i, f in zip(training, fold, strict=True) if f], [
        i for i, f in zip(training, fold, strict=True) if not f
    ]


def some(training: Sequence[int], size: int, seed: int) -> tuple[int, ...]:
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(len(training))[:size]
    return tuple(training[i] for i in sorted(chosen))


def compare(pairs: Sequence[Preference], ours: Floats, theirs: Floats) -> dict[str, float]:
    """Accuracy of two classifiers [n] in 0..1 over the pairs that have a majority, and their paired difference."""
    found: dict[str, float] = {}
    for name, values in (("accuracy", ours), ("tfidf", theirs), ("difference", ours - theirs)):
        by_group: defaultdict[str, list[float]] = defaultdict(list)
        for pair, value in zip(pairs, values, strict=True):
            by_group[opening(pair)].append(float(value))
        low, high = cluster_bootstrap([by_group[group] for group in sorted(by_group)], resamples=10_000)
        found |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", required=True, help="of the results: NAME.json, NAME.svg, NAME.png")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 3e-5, 1e-4], help="learning rates to try")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=[200, 400, 800], help="pairs, of the learning curve")
    parser.add_argument("--members", type=int, default=1, help="models a fold that differ in head and data order")
    parser.add_argument("--soft", action="store_true", help="learn the share of votes, not the majority")
    parser.add_argument("--jobs", type=int, default=1, help="models that learn at once")
    parser.add_argument("--work", type=Path, default=Path("runs/human_accuracy"), help="folder of the scores")
    parser.add_argument("--fit-only", action="store_true", help="leave the comparison with TF-IDF to another call")
    parser.add_argument("--json", action="store_true", help="one line")
    chosen = parser.parse_args()
    pairs = read(chosen.data)
    target = np.array([1.0 if p.target is None else p.target for p in pairs])
    if not chosen.soft:
        majority = ((1 + np.sign(target - 0.5)) / 2).tolist()
        pairs = [replace(pair, target=vote) for pair, vote in zip(pairs, majority, strict=True)]
    work = chosen.work / chosen.name
    work.mkdir(parents=True, exist_ok=True)
    fold = dealt([opening(pair) for pair in pairs], 0)
    training = [np.flatnonzero(fold != k).tolist() for k in range(FOLDS)]
    measured = [np.flatnonzero(fold == k).tolist() for k in range(FOLDS)]

    def fit_all(jobs: Sequence[Job]) -> None:
        run_all(jobs, pairs, chosen, work)

    tuning = {}
    for k in range(FOLDS):
        learn, dev = parts(training[k], pairs, 1 + k)
        for rate in chosen.rates:
            tuning[k, rate] = Job(
                name=f"{k}-tune-{rate:g}", training=tuple(learn), measured=tuple(dev), rate=rate, epochs=chosen.epochs
            )
    fit_all(list(tuning.values()))
    losses = {key: log_loss(leads(work, job), target[list(job.measured)]) for key, job in tuning.items()}
    rates = [min(chosen.rates, key=lambda rate: losses[k, rate]) for k in range(FOLDS)]

    def job(k: int, name: str, learn: Sequence[int], **more: Any) -> Job:
        return Job(
            name=f"{k}-{name}",
            training=tuple(learn),
            measured=tuple(measured[k]),
            rate=rates[k],
            epochs=chosen.epochs,
            **more,
        )

    whole = {(k, m): job(k, f"all-{m}", training[k], seed=m) for k in range(FOLDS) for m in range(chosen.members)}
    control = [job(k, "shuffled", training[k], shuffled=True) for k in range(FOLDS)]
    curve = {n: [job(k, str(n), some(training[k], n, k)) for k in range(FOLDS)] for n in chosen.sizes}
    fit_all([*whole.values(), *control, *(one for jobs in curve.values() for one in jobs)])
    if chosen.fit_only:
        return 0

    def out_of_fold(lead: Callable[[int], Floats]) -> Floats:
        """Right or wrong on every pair with a majority, in the order of the pairs."""
        found = np.zeros(len(pairs))
        for k in range(FOLDS):
            found[measured[k]] = right(lead(k), target[measured[k]])
        return found[target != 0.5]

    decided = [pair for pair, share in zip(pairs, target, strict=True) if share != 0.5]
    members = [out_of_fold(lambda k, m=m: leads(work, whole[k, m])) for m in range(chosen.members)]
    theirs = out_of_fold(lambda k: tfidf(pairs, training[k], measured[k]))
    lengths = np.array([[len(item.text.split()) for item in pair.items] for pair in pairs])
    longer = out_of_fold(lambda k: (lengths[measured[k], 0] - lengths[measured[k], 1]).astype(float))
    found = compare(decided, members[0], theirs)
    chance = compare(decided, out_of_fold(lambda k: leads(work, control[k])), theirs)
    answer = {
        "id": chosen.name,
        "claim": "Out of fold the reward model agrees with people no worse than a TF-IDF pair classifier.",
        "threshold": f"lower bound of the paired difference above {BAR}",
        "pairs": len(pairs),
        "decided": len(decided),
        "rates": rates,
        "epochs": chosen.epochs,
        "soft": chosen.soft,
        **{name: round(value, 4) for name, value in found.items()},
        "longer_wins": round(float(longer.mean()), 4),
        "shuffled_labels": {name: round(chance[name], 4) for name in ("accuracy", "difference", "difference_low")},
        "members": [round(float(one.mean()), 4) for one in members],
        "ensemble": None,
        "curve": {
            str(n): [
                round(float(out_of_fold(lambda k, jobs=jobs: leads(work, jobs[k])).mean()), 4),
                round(float(out_of_fold(lambda k, jobs=jobs: tfidf(pairs, jobs[k].training, measured[k])).mean()), 4),
            ]
            for n, jobs in curve.items()
        },
        "by_votes": {},
        "holds": chance["difference_low"] <= BAR < found["difference_low"],
    }
    if chosen.members > 1:
        summed = out_of_fold(lambda k: np.sum([leads(work, whole[k, m]) for m in range(chosen.members)], axis=0))
        answer["ensemble"] = {name: round(value, 4) for name, value in compare(decided, summed, theirs).items()}
    sure = np.abs(2 * target[target != 0.5] - 1)
    if len(set(sure.round(3))) > 1:
        answer["by_votes"] = {
            f"{level:.2f}": {
                "n": int((sure.round(3) == level).sum()),
                "accuracy": round(float(members[0][sure.round(3) == level].mean()), 4),
                "tfidf": round(float(theirs[sure.round(3) == level].mean()), 4),
            }
            for level in sorted(set(sure.round(3).tolist()))
        }
    from result import finish  # with what draws: a machine that only fits does without

    return finish(chosen.name, answer, plot(answer), HERE, one_line=chosen.json)


def plot(answer: Mapping[str, Any]) -> Any:
    """The learning curve of both, and the accuracy on all pairs beside what must be chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = [int(n) for n in answer["curve"]] + [round(answer["pairs"] * (FOLDS - 1) / FOLDS)]
    for place, (name, label) in enumerate((("accuracy", "reward model"), ("tfidf", "TF-IDF pairs"))):
        left.plot(sizes, [row[place] for row in answer["curve"].values()] + [answer[name]], "o-", label=label)
        ends.errorbar(
            answer[name],
            place,
            xerr=[[answer[name] - answer[f"{name}_low"]], [answer[f"{name}_high"] - answer[name]]],
            fmt="o",
            capsize=3,
        )
    left.set(xscale="log", xlabel="comparisons learned from", ylabel="accuracy out of fold")
    left.set_xticks(sizes, map(str, sizes))
    left.minorticks_off()
    left.legend()
    for place, name in enumerate(("longer_wins", "shuffled_labels"), 2):
        value = answer[name]["accuracy"] if name == "shuffled_labels" else answer[name]
        ends.plot(value, place, "o", color="grey")
    ends.set_yticks(range(4), ["reward model", "TF-IDF pairs", "longer wins", "labels shuffled"])
    ends.axvline(0.5, color="grey", linewidth=0.8)
    ends.invert_yaxis()
    ends.set(xlabel="accuracy out of fold (95 % intervals)")
    return figure


if __name__ == "__main__":
    sys.exit(main())
