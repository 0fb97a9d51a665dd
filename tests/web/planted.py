"""A workspace in which all that somebody else wrote is hostile, and whose secrets carry marks that a scan can find."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from prefloop.store.campaigns import Campaign, Item
from prefloop.store.redteam import Alternative
from prefloop.types import Comparison, Completion, Judgment, Message, Prompt, Sampling
from prefloop.web.workspace import Workspace
from tests.store.scene import plain
from tests.web.hostile import EVERYTHING, FORMULAS, GADGETS, HTML, LINKS, ODD, PWN

RUN = "runs/zqmark-run/label"
MODEL = "runs/zqmark-run/zqmark-mammoth-13b/zqmark-checkpoint"
SECRETS = ("zqmark-", "987654321", "0.4242", "7.7123")
"""Marks of runs, checkpoints, ids, slices and kinds of prompts; a seed, a temperature, a priority."""
TEXTS = [text for name, text in EVERYTHING.items() if not name.startswith("names")]
NAMES = [f'"><img src=x onerror={PWN}>', f"<script>{PWN}</script>", "{{ 7*7 }} \u202egnp.exe"]
"""What fits a field of few characters."""
FILE = f'"><img src=x onerror={PWN}>.jsonl'
FOLDER = f"<img src=x onerror={PWN}>"
GUIDELINES = "\n\n".join([*GADGETS.values(), *list(LINKS.values())[:9], *list(HTML.values())[:9]])
_AT_ONCE = 8
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_RESULT = {
    "win_rate": 0.5,
    "win_rate_low": 0.4,
    "win_rate_high": 0.6,
    "n_prompts": 9,
    "win_rate_length_controlled": 0.5,
}


def parts(texts: Sequence[str]) -> list[list[str]]:
    """In eights; the last one has two at least."""
    whole = list(texts) + list(texts[: 2 * (len(texts) % _AT_ONCE == 1)])
    return [whole[start : start + _AT_ONCE] for start in range(0, len(whole), _AT_ONCE)]


def comparison(name: str, texts: Sequence[str], turns: Sequence[str], slice: str = "zqmark-slice") -> Comparison:
    roles = ("user", "assistant", "system", NAMES[0])
    messages = tuple(Message(role=roles[n % 4], content=text) for n, text in enumerate(turns))
    prompt = Prompt(id=f"zqmark-prompt-{name}", messages=messages, slice=slice)
    items = tuple(
        Completion(
            id=f"zqmark-answer-{name}-{place}",
            prompt_id=prompt.id,
            segments=(),
            text=text,
            finish_reason="stop",
            sampling=Sampling(temperature=0.4242),
            seed=987654321,
            checkpoint=MODEL,
        )
        for place, text in enumerate(texts)
    )
    return Comparison(id=f"zqmark-item-{name}", prompt=prompt, items=items)


def comparisons() -> list[Comparison]:
    """Every text once as an answer among several and once in a conversation; pairs whose differences can be marked."""
    made = [
        comparison(f"many-{n}", part, part[::-1], slice=f"zqmark-slice {name_of(part[0])}")
        for n, part in enumerate(parts(TEXTS))
    ]
    for n, texts in enumerate((HTML, {**LINKS, **GADGETS}, {**ODD, **FORMULAS})):
        whole = "\n\n".join(texts.values())
        made.append(comparison(f"pair-{n}", [whole, f"{whole}\n\nand more"], ["Which one?"]))
    return [*made, comparison("known", ["wrong", "right"], TEXTS[:4]), comparison("held", ["one", "two"], ["Held?"])]


def name_of(text: str) -> str:
    """As much of a text as a column of text takes."""
    return _NO_TEXT.sub("?", text)[:200]


def plant(workspace: Workspace, labeler: str) -> Campaign:
    """A campaign, labels of others, a conversation, files and run folders."""
    config = plain(
        title=f'<script>{PWN}</script> "><img src=x onerror={PWN}> \u202egnp.exe $x^2$ [a](javascript:{PWN})',
        guidelines=GUIDELINES,
        axes=NAMES,
        flags=NAMES,
        rubric=NAMES,
        overlap=100,
        calibration=1,
        red_team=(MODEL,),
    )
    made = comparisons()
    workspace.store.add_comparisons(RUN, made)
    campaign = workspace.campaigns.create(RUN, config, by="prefloop")
    note = "\n\n".join(HTML.values())
    known = {"zqmark-item-known": {"ranking": [1, 0], "note": note}}
    items = [
        Item(comparison_id=c.id, gold=known.get(c.id), mix=f"zqmark-mix {NAMES[n % 3]}", priority=7.7123 - n)
        for n, c in enumerate(made)
    ]
    workspace.campaigns.add_items(RUN, items, by="prefloop")
    workspace.campaigns.hold(RUN, "zqmark-item-held", NAMES[0], by="prefloop")
    workspace.store.add_judgments(RUN, [judged for c in made[:-2] for judged in labels(c)], simulated=False)
    _converse(workspace, campaign, labeler)
    _write_files(workspace)
    return workspace.campaigns.by_run(RUN)


def labels(made: Comparison) -> list[Judgment]:
    """What people with hostile names said of a comparison."""
    return [
        Judgment(
            comparison_id=made.id,
            annotator=name_of(text) or "nobody",
            ranking=tuple(range(len(made.items))),
            axes={text: 1} if len(made.items) == 2 else {},
            flags=(text,),
            checks={text: (True,) * len(made.items)},
            rationale=text,
            edit=text,
        )
        for text in {name_of(text): text for text in (message.content for message in made.prompt.messages)}.values()
    ]


def _converse(workspace: Workspace, campaign: Campaign, labeler: str) -> None:
    """One open conversation and one that ended: all texts said by the labeler, answered, marked and bettered."""
    talk = workspace.red_team
    for place, texts in enumerate((TEXTS, TEXTS[:12])):
        here = talk.begin(campaign, labeler)
        groups = [texts[start : start + 5] for start in range(0, len(texts) - 4, 5)]
        for number, (said, one, other, note, better) in enumerate(groups):
            turn, at = 2 * number, (here.id, labeler)
            talk.say(*at, turn=turn, text=said, nonce=f"{place}-{turn}")
            talk.answer(*at, turn=turn + 1, made=[Alternative(text=text, finished=True) for text in (one, other)])
            talk.pick(*at, turn=turn + 1, which=0)
            talk.mark(*at, campaign.config, turn=turn + 1, which=0, marks=NAMES, note=note, better=better)
        if place:
            talk.finish(here.id, labeler)


def _write_files(workspace: Workspace) -> None:
    (workspace.folder / FILE).write_text(json.dumps({f"<script>{PWN}</script>": NAMES[0]}))
    run = workspace.folder / "runs" / FOLDER
    for stage in ("collect", "evaluate"):
        (run / stage).mkdir(parents=True)
        (run / stage / "run.json").write_text(json.dumps({"stage": stage}))
        (run / stage / "result.json").write_text(json.dumps(_RESULT if stage == "evaluate" else {}))
        rows = [
            {
                "step": 0,
                "model": model,
                "prompt": _asked(n // 12),
                "completion": {"text": text, "finish_reason": "stop"},
            }
            for n, text in enumerate(TEXTS[:36])
            for model in ("policy", "sft")
        ]
        (run / stage / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _asked(number: int) -> dict[str, Any]:
    return {"id": f"p{number}", "messages": [{"role": "user", "content": TEXTS[number]}]}
