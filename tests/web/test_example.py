from __future__ import annotations

import re

from prefloop.store.answers import Answer
from prefloop.store.overview import Filter
from prefloop.web import example
from prefloop.web.workspace import Workspace

_MODELS = re.compile(
    r"gpt|llama|claude|gemini|mistral|qwen|smol|openai|anthropic|language model|chatbot", re.IGNORECASE
)


def test_there_are_twenty_pairs_a_ranking_and_three_known_ones(workspace: Workspace) -> None:
    campaign = example.begin(workspace, by="ada")
    rows = workspace.overview.items(campaign.run, Filter())
    sizes = [len(row.comparison.items) for row in rows if row.gold is None]
    assert sorted(sizes) == [2] * 20 + [4]
    known = [row.gold for row in rows if row.gold is not None]
    assert len(known) == 3 and all(len(gold["note"]) > 40 and sorted(gold["ranking"]) == [0, 1] for gold in known)
    texts = [m.content for row in rows for m in row.comparison.prompt.messages]
    texts += [item.text for row in rows for item in row.comparison.items]
    assert not [text for text in texts if _MODELS.search(text)]
    assert len(set(texts)) == len(texts)


def test_of_the_known_ones_the_better_answer_is_not_always_the_longer_nor_the_first(workspace: Workspace) -> None:
    campaign = example.begin(workspace, by="ada")
    known = [row for row in workspace.overview.items(campaign.run, Filter(state="gold")) if row.gold]
    best = [(row, row.gold["ranking"].index(0)) for row in known if row.gold]
    longer = [len(row.comparison.items[i].text) > len(row.comparison.items[1 - i].text) for row, i in best]
    assert set(longer) == {True, False} and {i for _, i in best} == {0, 1}


def test_twice_is_as_good_as_once(workspace: Workspace) -> None:
    first = example.begin(workspace, by="ada")
    assert example.begin(workspace, by="ada") == first
    assert len(workspace.campaigns.all()) == 1 and len(workspace.overview.items(first.run, Filter())) == 24


def test_what_a_crash_left_undone_is_done(workspace: Workspace) -> None:
    workspace.campaigns.create(example.RUN, example.CONFIG, by="ada")
    example.begin(workspace, by="ada")
    assert workspace.progress.campaign(example.RUN).items == 21


def test_one_person_can_label_all_of_it(workspace: Workspace) -> None:
    workspace.accounts.create("ada", "admin", by="prefloop")
    campaign, kinds = example.begin(workspace, by="ada"), []
    while task := workspace.desk.next_task(campaign, "ada"):
        answer = Answer(axes={"overall": 1}) if len(task.shown) == 2 else Answer(ranks=range(4))
        workspace.answers.submit(task.id, "ada", answer, nonce=task.id)
        kinds.append(task.kind)
    assert kinds[:3] == ["gold"] * 3 and kinds.count("item") == 21
    whole = workspace.progress.campaign(campaign.run)
    assert whole.had == whole.wanted == 21
