"""The label stage and the label store it works through: what is there besides, before and after."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prefloop.configs.collect import LabelConfig
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.stages import label
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Judgment, Message, PrefloopError, Prompt


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def asked(index: int, split: str) -> Prompt:
    content = f"Name {index} things."
    checks = {"mentions": [["thing"]], "ideal_words": 20}
    message = Message(role="user", content=content)
    return Prompt(id=f"{split}-{index}", messages=(message,), slice="everyday", split=split, checks=checks)


def labeled(out: str = "r/label", **rest: Any) -> Mapping[str, Any]:
    """The label stage over two answers to each of three prompts."""
    rows = [
        {"prompt": prompt, "completion": text_completion(prompt, f"{word} thing {prompt.id}.")}
        for prompt in (asked(i, "train") for i in range(3))
        for word in ("One", "Another")
    ]
    write_jsonl("answers.jsonl", rows)
    return label.run(LabelConfig(out=out, completions="answers.jsonl", **rest))


def other_comparison() -> Comparison:
    prompt = asked(9, "train")
    return Comparison(
        id="other", prompt=prompt, items=(text_completion(prompt, "This."), text_completion(prompt, "That."))
    )


def test_other_comparisons_in_the_store_are_left_alone() -> None:
    with open_store() as store:
        store.add_comparisons("r/label", [other_comparison()])
        store.add_judgments(
            "r/label", [Judgment(comparison_id="other", annotator="Ada", ranking=(0, 1))], simulated=False
        )
    result = labeled()
    assert (result["comparisons"], result["judgments"], result["simulated"]) == (3, 9, True)


def test_two_prompts_of_one_id_are_refused_and_nothing_is_labeled() -> None:
    first = asked(0, "train")
    other = dataclasses.replace(first, messages=(Message(role="user", content="Else?"),))
    write_jsonl("two.jsonl", [{"prompt": p, "completion": text_completion(p, "A thing.")} for p in (first, other)])
    with pytest.raises(PrefloopError, match=r"two\.jsonl:2: id 'train-0' was another prompt further up"):
        label.run(LabelConfig(out="r/label", completions="two.jsonl"))
    assert not Path("r/label/preferences.jsonl").exists()


def test_a_run_that_has_not_finished_is_not_labeled() -> None:
    Path("half").mkdir()
    Path("half/run.json").write_text("{}")
    with pytest.raises(PrefloopError, match="half: this run has not finished; run its stage again, to its end, first"):
        label.run(LabelConfig(out="r/label", completions="half"))


def vote(*ranking: int, strength: int | None = None, by: str = "Ada", of: str = "c") -> Judgment:
    return Judgment(comparison_id=of, annotator=by, ranking=ranking, strength=strength)


@pytest.mark.parametrize(
    ("votes", "margin"),
    [
        ([vote(0, 1, strength=4), vote(0, 1, strength=2)], (1 + 1 / 3) / 2),
        ([vote(0, 1, strength=3), vote(1, 0, strength=2)], 0),  # nobody won
        ([vote(0, 1, strength=1), vote(0, 1, strength=2), vote(1, 0, strength=4)], 0),  # 0 + 1/3 - 1
        ([vote(0, 1, strength=4), vote(0, 1, strength=4), vote(1, 0, strength=2)], (1 + 1 - 1 / 3) / 3),
        ([vote(0, 0), vote(1, 0, strength=4)], 1 / 2),
    ],
)
def test_a_margin_speaks_for_the_winner(votes: list[Judgment], margin: float) -> None:
    assert label.margin(votes) == pytest.approx(margin)


def test_a_ranking_counts_as_much_as_a_pair() -> None:
    prompt = asked(0, "train")
    items = tuple(text_completion(prompt, text) for text in "abcd")
    votes = [vote(0, 1, 2, 3), vote(3, 2, 1, 0, by="Bob")]
    made = label.to_preferences([Comparison(id="c", prompt=prompt, items=items)], votes, {"Ada": False, "Bob": False})
    assert [preference.weight for preference in made] == [pytest.approx(1 / 2 / 6)] * 2


def test_agreement_is_over_all_pairs_of_a_ranking() -> None:
    """Two of three pairs are seen alike; of 6 votes 5 are for the earlier answer, so chance disagrees in 2 * 5 / 30."""
    found = label.agreement([vote(0, 1, 2), vote(1, 0, 2, by="Bob")])
    assert found == {"agreement": pytest.approx(2 / 3), "krippendorff_alpha": pytest.approx(0)}


def test_judgments_of_a_simulated_annotator_with_other_settings_are_refused() -> None:
    labeled(panel=[{"name": "simulated-a", "accuracy": 0.95}])
    shutil.rmtree("r/label")
    with pytest.raises(
        PrefloopError, match="judgments of 'simulated-a' for this run that were made with other settings"
    ):
        labeled(panel=[{"name": "simulated-a", "accuracy": 0.95}], seed=1)
    shutil.rmtree("r/label")
    assert labeled(panel=[{"name": "simulated-a", "accuracy": 0.95}])["judgments"] == 3


def test_people_who_judged_before_count_and_have_no_ceiling() -> None:
    labeled("first/label")
    with open_store() as store:
        comparisons = store.comparisons("first/label")
        store.add_comparisons("r/label", comparisons)
        mine = [Judgment(comparison_id=c.id, annotator="Ada", ranking=(0, 1)) for c in comparisons[:1]]
        store.add_judgments("r/label", mine, simulated=False)
    assert labeled()["simulated"] is False
    assert sorted(p.simulated for p in read_preferences("r/label/preferences.jsonl")) == [False, True, True]


def test_labels_that_come_after_the_end_are_not_left_out_in_silence() -> None:
    labeled()
    labeled()
    with open_store() as store:
        late = Judgment(comparison_id=store.comparisons("r/label")[0].id, annotator="Ada", ranking=(0, 1))
        store.add_judgments("r/label", [late], simulated=False)
    with pytest.raises(PrefloopError, match="1 judgments more than this stage used; remove this folder"):
        labeled()
