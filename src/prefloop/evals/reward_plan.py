"""What a reward has to score so that it can be reported on, and its scores of it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefloop.data.heldout import by_prompt, distinct_pairs
from prefloop.data.jsonl import text_completion
from prefloop.evals.probes import PROBES, Probe, again
from prefloop.rewards.resolve import RewardFn
from prefloop.types import Completion, Preference, Prompt

Role = Literal["heldout", "train", "new", "probe"]
ORIGINAL = ""
"""Name of the probe that changes nothing."""
SHORT = 1500
"""Characters of prompt and answer that any model's context holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An answer to be scored: of a held-out or a training comparison, a new sample, or a changed one. Of the latter
    `probe` names the change and `rival` the other answer (its id) of the comparison that the original comes from."""

    role: Role
    prompt: Prompt
    completion: Completion
    probe: str = ORIGINAL
    rival: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An ask with its score; `raw`: in logits of preference, None where the reward knows none; `gold`: what counts as
    the truth, if anything does; `members`: the scores of an ensemble's members."""

    ask: Ask
    score: float
    raw: float | None = None
    gold: float | None = None
    members: Mapping[str, float] = field(default_factory=dict)


def plan(
    training: Sequence[Preference],
    heldout: Sequence[Preference],
    new: Sequence[tuple[Prompt, Completion]],
    *,
    train: int,
    probes: int,
    seed: int,
) -> list[Ask]:
    """All answers of held-out comparisons and new samples, those to `train` training prompts, and every change of
    one answer to each of `probes` held-out prompts; prompts by a seeded draw. Texts that are scored twice stand at
    the end, in reverse order: in other batches and other company.

    The answer that is changed is one that most annotators chose, from a random comparison of its prompt. A change that
    makes it longer, with its prompt, than all known ones and than SHORT is left out: it might not fit the context.
    """
    asks = [_ask("heldout", prompt, item) for prompt, item in _answers(heldout)]
    seen = _drawn(sorted({p.prompt.id for p in training}), train, f"{seed}:train")
    asks += [_ask("train", prompt, item) for prompt, item in _answers(training) if prompt.id in seen]
    asks += [_ask("new", prompt, item) for prompt, item in new]
    others = [(prompt.id, item.text) for prompt, item in _answers(heldout)]
    changed = [ask for chosen, rival in _chosen(heldout, probes, seed) for ask in _changes(chosen, rival, others, seed)]
    room = max([SHORT, *map(_characters, asks)])
    changed = [ask for ask in changed if ask.probe == ORIGINAL or _characters(ask) <= room]
    twice = {probe.name for probe in PROBES if probe.change is again}
    asks += [ask for ask in changed if ask.probe not in twice]
    return asks + [ask for ask in reversed(changed) if ask.probe in twice]


def score(asks: Sequence[Ask], reward: RewardFn, gold: RewardFn | None) -> list[Scored]:
    """The reward's scores, and the gold ones of held-out answers and new samples. One call of the reward."""
    found = reward([ask.prompt for ask in asks], [ask.completion for ask in asks])
    judged = [i for i, ask in enumerate(asks) if gold and ask.role in ("heldout", "new")]
    truth = gold([asks[i].prompt for i in judged], [asks[i].completion for i in judged]) if gold and judged else []
    known = dict(zip(judged, truth, strict=True))
    return [
        Scored(
            ask=ask,
            score=made.value,
            raw=made.parts.get("raw"),
            gold=known[i].value if i in known else None,
            members={k: v for k, v in made.parts.items() if k not in ("disagreement", "raw")}
            if "disagreement" in made.parts
            else {},
        )
        for i, (ask, made) in enumerate(zip(asks, found, strict=True))
    ]


def row(scored: Scored) -> dict[str, Any]:
    """A line of samples.jsonl."""
    ask = scored.ask
    return {
        "role": ask.role,
        "prompt_id": ask.prompt.id,
        "completion_id": ask.completion.id,
        "probe": ask.probe,
        "text": ask.completion.text,
        "score": scored.score,
        "raw": scored.raw,
        "gold": scored.gold,
        "members": dict(scored.members),
    }


def from_row(ask: Ask, line: Mapping[str, Any]) -> Scored:
    """The inverse of `row`, given the ask that it answers."""
    return Scored(ask=ask, score=line["score"], raw=line["raw"], gold=line["gold"], members=line["members"])


def _ask(role: Role, prompt: Prompt, completion: Completion) -> Ask:
    return Ask(role=role, prompt=prompt, completion=completion)


def _characters(ask: Ask) -> int:
    return len(ask.completion.text) + sum(len(message.content) for message in ask.prompt.messages)


def _answers(preferences: Sequence[Preference]) -> list[tuple[Prompt, Completion]]:
    items = [(p.prompt, item) for p in distinct_pairs(preferences) for item in p.items]
    return [(prompt, item) for prompt, known in by_prompt(items).values() for item in known]


def _drawn(ids: Sequence[str], count: int, seed: str) -> set[str]:
    return set(random.Random(seed).sample(ids, min(count, len(ids))))


def _chosen(heldout: Sequence[Preference], count: int, seed: int) -> list[tuple[tuple[Prompt, Completion], Completion]]:
    """((prompt, preferred answer), the other one) of `count` prompts."""
    decided: dict[str, list[Preference]] = {}
    for pair in distinct_pairs(heldout):
        winner = pair.items[0 if pair.target is None or pair.target > 0.5 else 1]
        if pair.target != 0.5 and winner.text.strip():
            decided.setdefault(pair.prompt.id, []).append(pair)
    made = []
    for name in sorted(_drawn(sorted(decided), count, f"{seed}:probes")):
        pair = random.Random(f"{seed}:{name}").choice(decided[name])
        a, b = pair.items if pair.target is None or pair.target > 0.5 else pair.items[::-1]
        made.append(((pair.prompt, a), b))
    return made


def _changes(
    chosen: tuple[Prompt, Completion], rival: Completion, others: Sequence[tuple[str, str]], seed: int
) -> list[Ask]:
    prompt, answer = chosen
    other = random.Random(f"{seed}:{prompt.id}:other").choice(
        [text for name, text in others if name != prompt.id] or [""]
    )
    asks = [Ask(role="probe", prompt=prompt, completion=text_completion(prompt, answer.text), rival=rival.id)]
    for probe in PROBES:
        text = probe.change(answer.text, random.Random(f"{seed}:{prompt.id}:{probe.name}"), other)
        if text is not None:
            made = _completion(prompt, text, probe)
            asks.append(Ask(role="probe", prompt=prompt, completion=made, probe=probe.name, rival=rival.id))
    return asks


def _completion(prompt: Prompt, text: str, probe: Probe) -> Completion:
    made = text_completion(prompt, text)
    return replace(made, finish_reason="length") if probe.unfinished else made
