"""From a click to a reward model: a script with a named taste labels in a real browser, and a model learns that taste.

    end_to_end.py [--labels N] [--heldout N] [--model MODEL] [--seed S] [--out DIR] [--json]

The taste is courtesy: of two answers the one that is friendly beats the one that is curt, whatever their length. The
script reads the two texts on the page and presses two keys. The labels are exported, a reward model is fitted on them,
and measured on pairs of other prompts that nobody labeled, by the taste itself. Prints one JSON object; exits 0 only
where held-out accuracy is above 70 %. The control learns the same labels with half of them flipped, and must fail.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients import RUN, Server, opened
from playwright.sync_api import Page, expect, sync_playwright

from prefloop.configs.campaign import CampaignConfig
from prefloop.configs.load import load_recipe, stage_config
from prefloop.configs.reward import RewardConfig
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.data.pairing import comparison_id
from prefloop.stages import reward
from prefloop.store.campaigns import Item
from prefloop.types import Comparison, Message, Preference, Prompt

BAR = 0.7
FRIENDLY = (
    "Thank you for asking!",
    "What a lovely question.",
    "I am glad to help with this.",
    "Happy to explain.",
    "I hope this is of use to you.",
    "Please ask again whenever you like.",
    "Enjoy your day!",
    "It is a pleasure.",
)
CURT = (
    "This is obvious.",
    "Look it up next time.",
    "I have said so before.",
    "That is all you get.",
    "Everybody knows this anyway.",
    "Do not ask me again.",
    "Figure out the rest yourself.",
    "Fine, if I must.",
)
FACTS = (
    "It takes about {n} minutes.",
    "Most people use {n} of them.",
    "The usual size is {n} cm.",
    "Keep it below {n} degrees.",
    "Start with the larger part.",
    "Water helps with that.",
    "Check the edges first.",
    "It costs about {n} coins.",
)
THINGS = (
    "a kite",
    "bread",
    "a bookshelf",
    "soup",
    "a fence",
    "a lamp",
    "candles",
    "a garden",
    "jam",
    "a raft",
    "a drum",
    "paper",
    "a nest box",
    "cheese",
    "a rope",
    "soap",
    "a stool",
    "a hat",
    "ink",
    "a basket",
    "a clock",
    "noodles",
)
ASKED = (
    "How do I make {}?",
    "What do I need for {}?",
    "How long does {} take?",
    "Is {} hard to make?",
    "Who first made {}?",
    "What is the best way to repair {}?",
    "Where can I learn about {}?",
    "What goes wrong with {}?",
    "Can a child make {}?",
    "How do I store {}?",
    "Which tools does {} need?",
    "When should I replace {}?",
    "How do I clean {}?",
    "How much space does {} need?",
    "What does {} cost?",
    "How can I sell {}?",
    "Why would anyone want {}?",
    "What is {} made of?",
    "How do I carry {}?",
    "How do I explain {} to a friend?",
)


def pairs(count: int, seed: int) -> list[tuple[Prompt, str, str]]:
    """Prompts with a friendly and a curt answer, of lengths that say nothing."""
    rng = random.Random(seed)
    asked = [form.format(thing) for form in ASKED for thing in THINGS]
    return [
        (
            Prompt(id=f"q{i}", messages=(Message(role="user", content=question),)),
            _answer(rng, FRIENDLY),
            _answer(rng, CURT),
        )
        for i, question in enumerate(rng.sample(asked, count))
    ]


def _answer(rng: random.Random, tone: Sequence[str]) -> str:
    said = [fact.format(n=rng.randint(2, 90)) for fact in rng.sample(FACTS, rng.randint(1, 5))]
    for phrase in rng.sample(tone, rng.randint(1, 2)):
        said.insert(rng.randint(0, len(said)), phrase)
    return " ".join(said)


def friendly(text: str) -> bool:
    """The taste."""
    return any(phrase in text for phrase in FRIENDLY)


def prepare(folder: Path, made: Sequence[tuple[Prompt, str, str]]) -> str:
    """A campaign over the pairs; returns an API token and makes an account for the browser."""
    work = opened(folder, "")
    comparisons = []
    for prompt, good, bad in made:
        items = tuple(text_completion(prompt, text) for text in sorted((good, bad)))
        comparisons.append(Comparison(id=comparison_id(items), prompt=prompt, items=items))
    work.store.add_comparisons(RUN, comparisons)
    work.accounts.create("labeler", "labeler", password="a long password", by="bench")
    config = CampaignConfig(shared_share=0, repeat_share=0, calibration=0)
    campaign = work.campaigns.create(RUN, config, by="bench")
    work.campaigns.add_items(RUN, [Item(comparison_id=c.id) for c in comparisons], by="bench")
    work.close()
    return campaign.id


def label(address: str, campaign: str, count: int) -> None:
    """Sign in, and press two keys for each pair."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{address}/login")
        page.fill("input[name=name]", "labeler")
        page.fill("input[name=password]", "a long password")
        page.click("main button")
        page.goto(f"{address}/c/{campaign}")
        page.click(f"form[action='/c/{campaign}/next'] button")
        for _ in range(count):
            _decide(page)
        browser.close()


def _decide(page: Page) -> None:
    """Two keys, then the next task, or the campaign's page after the last."""
    page.wait_for_selector("#answer-1")
    left, here = page.inner_text("#answer-0"), page.url
    page.keyboard.press("2" if friendly(left) else "8")
    page.keyboard.press("Enter")
    expect(page).not_to_have_url(here, timeout=60_000)


def train(folder: Path, preferences: Path, model: str, seed: int, shuffle: bool) -> float:
    """Held-out accuracy of a reward model with the quickstart's settings."""
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.toml", [f"seed={seed}"])
    where = folder / f"reward{'-shuffled' if shuffle else ''}"
    given = {"out": str(where), "model": model, "preferences": str(preferences), "shuffle_labels": shuffle}
    config = stage_config(recipe, "reward", **given)
    assert isinstance(config, RewardConfig)
    return float(reward.run(config)["accuracy"])


def run(count: int, heldout: int, model: str, seed: int, out: Path) -> dict[str, Any]:
    made, began = pairs(count + heldout, seed), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    campaign = prepare(out, made[:count])
    server = Server(out, "")
    try:
        server.wait()
        label(server.address, campaign, count)
    finally:
        server.end()
    labeled = time.monotonic()
    exported = out / "labeled.jsonl"
    export_preferences(out, exported)
    known = read_preferences(exported)
    unseen = [
        Preference(
            prompt=replace(prompt, split="dev"),
            items=(text_completion(prompt, good), text_completion(prompt, bad)),
            target=1.0,
            group=prompt.id,
        )
        for prompt, good, bad in made[count:]
    ]
    write_jsonl(out / "preferences.jsonl", [*known, *unseen])
    longer = [len(good) > len(bad) for _, good, bad in made[count:]]
    accuracy, control = (train(out, out / "preferences.jsonl", model, seed, shuffle) for shuffle in (False, True))
    right = sum(friendly(p.items[0 if (p.target or 0) > 0.5 else 1].text) for p in known)
    return {
        "labels": len(known),
        "labels_right": right,
        "heldout": heldout,
        "accuracy": accuracy,
        "control_shuffled_labels": control,
        "longer_wins": sum(longer) / len(longer),
        "seconds_labeling": round(labeled - began),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "holds": len(known) == right == count and accuracy > BAR > control,
    }


def export_preferences(folder: Path, path: Path) -> None:
    """As `prefloop labels export` does."""
    from prefloop.store import exchange

    work = opened(folder, "")
    exchange.export(work.store, RUN, path, "preferences", key=work.key)
    work.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--heldout", type=int, default=220)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder to keep; without it a temporary one")
    parser.add_argument("--json", action="store_true", help="one line")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        result = run(chosen.labels, chosen.heldout, chosen.model, chosen.seed, out)
    print(json.dumps(result, indent=None if chosen.json else 2))
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
