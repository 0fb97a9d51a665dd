"""How far a campaign is: what counts, and what is no part of it."""

from __future__ import annotations

import pytest

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.jsonl import text_completion
from prefloop.store import db
from prefloop.store.campaigns import Campaigns, Item, MissingError
from prefloop.store.clock import Clock
from prefloop.store.labels import Store
from prefloop.store.standing import Standing, standing
from prefloop.types import CANT_JUDGE, Comparison, Judgment, Message, Prompt


def comparison(name: str) -> Comparison:
    prompt = Prompt(id=name, messages=(Message(role="user", content=name),))
    return Comparison(id=name, prompt=prompt, items=tuple(text_completion(prompt, text) for text in "ab"))


def test_labels_are_counted_up_to_what_is_wanted_and_only_of_items_handed_out(url: str) -> None:
    engine = db.connect(url)
    with Store(engine) as store:
        campaigns = Campaigns(engine, Clock())
        store.add_comparisons("r", [comparison(name) for name in ("a", "b", "gold", "held", "outside")])
        with pytest.raises(MissingError, match="no campaign"):
            standing(engine, "r")
        campaigns.create("r", CampaignConfig(overlap=2, shared_share=0), by="Ada")
        assert standing(engine, "r") == Standing(state="open", wanted=0, counted=0, held=0, judged=False)
        items = [Item(comparison_id="a"), Item(comparison_id="b"), Item(comparison_id="held", held="names a model")]
        campaigns.add_items("r", [*items, Item(comparison_id="gold", gold={"ranking": [0, 1]})], by="Ada")
        assert standing(engine, "r") == Standing(state="open", wanted=4, counted=0, held=1, judged=False)
        unjudged = Judgment(comparison_id="b", annotator="Ada", flags=(CANT_JUDGE,))
        store.add_judgments("r", [unjudged], simulated=False)
        assert standing(engine, "r") == Standing(state="open", wanted=4, counted=0, held=1, judged=False)
        labels = [Judgment(comparison_id="a", annotator=name, ranking=(0, 1)) for name in ("Ada", "Bob", "Cy")]
        labels.append(Judgment(comparison_id="held", annotator="Ada", ranking=(0, 1)))
        store.add_judgments("r", labels, simulated=False)
        campaigns.set_state("r", "paused", by="Ada")
        assert standing(engine, "r") == Standing(state="paused", wanted=4, counted=2, held=1, judged=True)
        campaigns.hold("r", "held", "", by="Ada")
        assert standing(engine, "r") == Standing(state="paused", wanted=6, counted=3, held=0, judged=True)
