"""Files into the store and into a campaign: line 33 of the checklist, blindness, and doing it again after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.jsonl import read_preferences
from prefloop.data.pairing import comparison_id
from prefloop.data.rows import read_rows
from prefloop.store import imports
from prefloop.store.exchange import export
from prefloop.store.imports import Imported, import_items
from prefloop.store.labels import open_store
from prefloop.types import Comparison, PrefloopError, to_json
from tests.store.scene import RUN, Scene, comparison, plain

Stage = Callable[..., Scene]
USER = {"role": "user", "content": "Hi"}


def write(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def pair(i: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Question {i}?", "answers": [f"yes {i}", f"no {i}"]} | more


def battle(winner: str | None = "model_a", i: int = 0, **more: Any) -> dict[str, Any]:
    row = {"prompt": f"Question {i}?", "response_a": f"yes {i}", "response_b": f"no {i}", "winner": winner}
    return row | {"model_a": "koala-13b", "model_b": "vicuna-7b"} | more


@pytest.fixture
def empty(stage: Stage) -> Scene:
    """A campaign with one item, which stays out of the way."""
    return stage(plain(), [comparison("there")])


def texts(made: Sequence[Comparison]) -> list[set[str]]:
    return [{item.text for item in c.items} for c in made]


def votes(here: Scene) -> list[tuple[str, str | None, int | None]]:
    """Who preferred which text, and how strongly."""
    items = {c.id: c.items for c in here.store.comparisons(RUN)}
    found = []
    for judgment in here.store.judgments(RUN):
        ranking = judgment.ranking or ()
        best = [items[judgment.comparison_id][i].text for i, rank in enumerate(ranking) if rank == 0]
        found.append((judgment.annotator, best[0] if len(best) == 1 else None, judgment.strength))
    return found


def test_finished_comparisons_come_with_their_judgments_and_are_not_handed_out(empty: Scene, tmp_path: Path) -> None:
    rows = [battle("model_a", 0, judge="eve-7"), battle("tie", 1), battle(None, 2)]
    rows += [{"prompt": "Q3?", "chosen": "a", "rejected": "b", "annotator": "joe", "strength": 3}]
    done = import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows), by="ada")
    assert done == Imported(comparisons=4, labels=3, items=4)
    assert votes(empty) == [("eve-7", "yes 0", None), ("imported", None, None), ("joe", "a", 3)]
    waiting = [
        task.comparison.prompt.messages[0].content for name in ("ada", "bob", "eve") if (task := empty.next(name))
    ]
    assert sorted(waiting) == ["Question 2?", "Question there?"]  # overlap 1: what has its label waits no longer
    assert empty.store.verify()


def test_named_annotators_of_one_pair_are_judgments_of_one_comparison(empty: Scene, tmp_path: Path) -> None:
    rows = [battle("model_a", judge="ann"), battle("model_b", judge="ben"), battle("tie", judge="cid")]
    done = import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows))
    assert (done.comparisons, done.labels, done.known_labels) == (1, 3, 0)
    assert votes(empty) == [("ann", "yes 0", None), ("ben", "no 0", None), ("cid", None, None)]


def test_the_same_pair_swapped_is_the_same_comparison(empty: Scene, tmp_path: Path) -> None:
    """Another annotator's judgment is turned round and kept; of the same annotator the first one stays."""
    turned = {"response_a": "no 0", "response_b": "yes 0", "model_a": "vicuna-7b", "model_b": "koala-13b"}
    rows = [
        battle("model_a", judge="ann"),
        battle("model_b", judge="ben") | turned,
        battle("model_a", judge="ann") | turned,
    ]
    done = import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows))
    assert (done.comparisons, done.labels, done.known_labels, done.items) == (1, 2, 1, 1)
    assert votes(empty) == [("ann", "yes 0", None), ("ben", "yes 0", None)]
    swapped = write(tmp_path, [battle("model_b", judge="cid") | turned], "other.jsonl")
    assert import_items(empty.store, empty.campaigns, RUN, swapped).comparisons == 0
    assert votes(empty)[-1] == ("cid", "yes 0", None)


LONG = "word " * 200_000


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([pair(), pair()], Imported(comparisons=1, items=1)),  # one prompt's answers twice: nothing new
        ([battle(), battle()], Imported(comparisons=1, labels=1, known_labels=1, items=1)),
        ([pair(id="x"), pair(1, id="x")], Imported(comparisons=2, items=2)),  # ids of others are not read
        ([{"prompt": "Q", "chosen": "a", "rejected": ""}], Imported(comparisons=1, labels=1, items=1)),
        ([{"prompt": "Q", "answers": ["", "a"]}], Imported(comparisons=1, items=1)),
        ([{"prompt": "?", "answers": ["a", "b"]}], Imported(comparisons=1, items=1)),
        ([{"prompt": LONG, "answers": ["a", "b"]}], Imported(comparisons=1, items=1)),
        ([{"prompt": "Grüße", "answers": ["مرحبا", "こんにちは 👋🏽"]}], Imported(comparisons=1, items=1)),
        ([pair(), {"prompt": "Q", "completion": "alone"}], Imported(comparisons=1, items=1, alone=1)),
        ([pair(), {"prompt": "Q", "answers": ["a", " a\n"]}], Imported(comparisons=1, items=1, alone=1)),
    ],
    ids=[
        "same answers",
        "same battle",
        "same id",
        "empty rejected",
        "empty answer",
        "one token",
        "long",
        "languages",
        "one missing",
        "identical",
    ],
)
def test_odd_rows_that_have_a_defined_outcome(
    empty: Scene, tmp_path: Path, rows: list[dict[str, Any]], outcome: Imported
) -> None:
    path = write(tmp_path, rows)
    assert import_items(empty.store, empty.campaigns, RUN, path) == outcome
    again = import_items(empty.store, empty.campaigns, RUN, path)
    assert (again.comparisons, again.labels, again.items) == (0, 0, 0)
    prompts = {c.prompt.messages[0].content for c in empty.store.comparisons(RUN)[1:]}
    assert prompts <= {row["prompt"] for row in rows}  # nothing was cut or changed


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "the same answer"),
        (battle() | {"response_b": "yes 0 "}, "two of the answers are the same"),
        ({"prompt": "Q", "chosen": "a", "rejected": None}, "field 'rejected' must be a string"),
        (battle() | {"response_b": None}, "field 'response_b' must be a string"),
        ({"conversation_a": [USER, USER], "conversation_b": [USER]}, "must end with an assistant turn"),
        ({"question": "Q"}, "unknown layout; fields found: question; layouts known: comparison, labels"),
        ({"prompt": "Q"}, "a prompt without an answer"),
        (battle(judge="x\ny"), "printable"),
        (battle(mix="\ud800"), "printable"),
        ({"prompt": "Q", "answers": list("abcdefghijk"), "ranking": [0] * 11}, "11 answers; .* at most 10"),
        ({"id": "x", "prompt": {"id": "p", "messages": []}, "items": to_json(comparison("x").items)}, "no message"),
    ],
)
def test_odd_rows_stop_the_import_or_are_counted(
    empty: Scene, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, [battle(i=1), row, battle(i=2)])
    with pytest.raises(PrefloopError, match=rf"rows\.jsonl:2: .*{message}"):
        import_items(empty.store, empty.campaigns, RUN, path)
    done = import_items(empty.store, empty.campaigns, RUN, path, skip_bad=True)
    assert (done.labels, done.skipped) == (2, 1)
    assert "rows.jsonl:2" in done.first_skipped


def test_two_prompts_of_one_id_are_never_compared(empty: Scene, tmp_path: Path) -> None:
    first = to_json(comparison("x"))
    rows = [{"prompt": first["prompt"], "completion": item} for item in first["items"]]
    rows[1]["prompt"] = rows[1]["prompt"] | {"messages": [{"role": "user", "content": "Something else?"}]}
    path = write(tmp_path, rows)
    with pytest.raises(PrefloopError, match=r"rows\.jsonl:2: id 'p-x' was another prompt further up; rename one"):
        import_items(empty.store, empty.campaigns, RUN, path)


def test_the_same_comparison_with_other_content_is_named(empty: Scene, tmp_path: Path) -> None:
    path = write(tmp_path, [battle(slice="a"), battle(slice="b")])
    with pytest.raises(PrefloopError, match=r"rows\.jsonl:2: comparison \w+ came before with other content"):
        import_items(empty.store, empty.campaigns, RUN, path)
    done = import_items(empty.store, empty.campaigns, RUN, path, skip_bad=True)
    assert (done.comparisons, done.skipped) == (1, 1)
    with pytest.raises(PrefloopError, match="is already there with other content"):
        import_items(empty.store, empty.campaigns, RUN, write(tmp_path, [battle(slice="c")], "other.jsonl"))


def test_a_file_of_lone_answers_says_so(empty: Scene, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "y"}]
    with pytest.raises(PrefloopError, match="No prompt has two completions"):
        import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows))


def test_answers_are_paired_or_ranked_as_asked(stage: Stage, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": f"answer {i}", "model": f"m{i % 2}"} for i in range(5)]
    rows += [{"prompt": "R", "answers": ["x", "y", "z", "y "]}]
    path = write(tmp_path, rows)
    counts = {}
    for name, options in {"pair": {}, "pairs": {"pairs": 4}, "three": {"ways": 3}, "nine": {"ways": 9}}.items():
        with open_store(f"sqlite:///{tmp_path / name}.db") as store:
            import_items(store, None, "r", path, seed=1, **options)
            counts[name] = sorted((c.prompt.messages[0].content, len(c.items)) for c in store.comparisons("r"))
            ids = [c.id for c in store.comparisons("r")]
            import_items(store, None, "again", path, seed=1, **options)
            assert [c.id for c in store.comparisons("again")] == ids
            for c in store.comparisons("r"):
                assert len({item.text.strip() for item in c.items}) == len(c.items)
                assert [item.id for item in c.items] == sorted(item.id for item in c.items)
    assert counts == {
        "pair": [("Q", 2), ("R", 2)],
        "pairs": [("Q", 2)] * 4 + [("R", 2)] * 4,
        "three": [("Q", 3), ("R", 3)],
        "nine": [("Q", 5), ("R", 3)],
    }


def test_extras_reach_the_campaign(empty: Scene, tmp_path: Path) -> None:
    gold = {"ranking": [1, 0], "note": "It says no."}
    rows = [pair(0, mix="hard", priority=0.5, slice="law"), pair(1, gold=gold), pair(2)]
    done = import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows), by="ada")
    assert (done.items, done.held) == (3, 0)
    found = {c.prompt.messages[0].content: empty.item(c.id) for c in empty.store.comparisons(RUN)}
    hard, known = found["Question 0?"], found["Question 1?"]
    assert (hard["mix"], hard["priority"], hard["slice"], hard["gold"]) == ("hard", 0.5, "law", None)
    best = [item["text"] for item, rank in zip(known["items"], known["gold"]["ranking"], strict=True) if rank == 0]
    assert (best, known["gold"]["note"]) == (["no 1"], "It says no.")
    assert known["needed"] > 1000
    (event,) = [row for row in empty.rows("events") if row["kind"] == "items" and row["actor"] == "ada"][1:]
    assert json.loads(event["content"])["added"] == 3


def test_the_log_says_who_imported_labels(empty: Scene, tmp_path: Path) -> None:
    import_items(empty.store, empty.campaigns, RUN, write(tmp_path, [battle(judge="bob")]), by="eve")
    (event,) = [row for row in empty.rows("events") if row["kind"] == "labels added"]
    assert event["actor"] == "eve" and json.loads(event["content"])["run"] == RUN


def test_ten_answers_are_taken(empty: Scene, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "answers": list("abcdefghij"), "ranking": list(range(10))}]
    assert import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows)).labels == 1


def test_pseudonyms_of_this_workspace_are_read_as_the_names_they_stand_for(empty: Scene, tmp_path: Path) -> None:
    key, path = b"0123456789abcdef", tmp_path / "out.jsonl"
    empty.label("ada")
    import_items(empty.store, empty.campaigns, RUN, write(tmp_path, [battle(judge="bob"), battle("tie", 1)]))
    assert export(empty.store, RUN, path, key=key)["labels"] == 3
    empty.answers.withdraw(empty.campaign, "ada")
    done = import_items(empty.store, empty.campaigns, RUN, path, key=key)
    assert (done.labels, done.known_labels) == (0, 3)
    assert import_items(empty.store, None, "copy", path, key=key).labels == 3
    assert list(empty.store.annotators("copy")) == ["ada", "bob", "imported"]
    for other in (None, b"another key than that"):
        with pytest.raises(PrefloopError, match=r"out\.jsonl:1: '\w{10}' is a pseudonym of somebody whose labels"):
            import_items(empty.store, empty.campaigns, RUN, path, key=other)
    export(empty.store, RUN, path)
    assert import_items(empty.store, empty.campaigns, RUN, path).labels == 0


def test_the_first_row_of_a_comparison_decides_but_for_labels(empty: Scene, tmp_path: Path) -> None:
    rows = [battle("model_a", judge="ann", mix="easy"), battle("model_a", judge="ben", mix="hard", priority=9)]
    import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows))
    item = empty.item(empty.store.comparisons(RUN)[1].id)
    assert (item["mix"], item["priority"], item["counted"]) == ("easy", 0.0, 2)


def test_an_answer_that_names_its_model_is_held_back(empty: Scene, tmp_path: Path) -> None:
    rows = [battle(None, 0), battle(None, 1) | {"response_a": "I am Koala-13B, a model."}]
    rows += [battle(None, 2) | {"prompt": "Do you know koala-13b?"}]
    done = import_items(empty.store, empty.campaigns, RUN, write(tmp_path, rows))
    assert (done.items, done.held) == (3, 1)
    held = {c.prompt.messages[0].content: empty.item(c.id)["held"] for c in empty.store.comparisons(RUN)}
    reason = held.pop("Question 1?")
    assert reason.startswith("names a model: ")
    assert "koala" in reason.lower()
    assert set(held.values()) == {""}
    handed = set()
    for name in ("ada", "bob", "eve"):
        while answered := empty.label(name):
            handed.add(answered[0].comparison.prompt.messages[0].content)
    assert handed == {"Question there?", "Question 0?", "Do you know koala-13b?"}


def test_without_a_campaign_labels_and_what_a_later_one_needs_are_kept(tmp_path: Path) -> None:
    gold = {"ranking": [0, 1], "note": ""}
    path = write(tmp_path, [battle(mix="hard"), pair(1, gold=gold)])
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        done = import_items(store, None, "r", path)
        assert (done.comparisons, done.labels, done.items) == (2, 1, 0)
        export(store, "r", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["mix"], bool(row["gold"])) for row in rows] == [("hard", False), ("", True)]


def test_our_own_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, [battle()])
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        import_items(store, None, "r", path)
        export(store, "r", tmp_path / "out.jsonl")
        (good,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        label, asked = good["labels"][0], good["comparison"]
        said = label["judgment"]
        for change, message in (
            ({"labels": 3}, "a list is needed, not int"),
            ({"labels": [label | {"status": "lost"}]}, "status 'lost' is not one of counted"),
            ({"labels": [label | {"status": "unjudged"}]}, "its status 'unjudged' does not fit"),
            ({"labels": [label | {"judgment": said | {"ranking": [0]}}]}, "the ranking needs 2 ranks"),
            ({"labels": [label | {"judgment": said | {"comparison_id": "x"}}]}, "a label is of comparison 'x'"),
            ({"comparison": good["comparison"] | {"items": []}}, "0 answer; a comparison needs two"),
            ({"mix": "\0"}, "holds a character that is no text"),
            ({"held": "\0"}, "holds a character that is no text"),
            ({"more": 1}, "unknown field 'more'"),
            ({"gold": {"note": "none"}}, "'gold' needs a rank for each of 2 answers"),
            ({"gold": {"ranking": [0, 2]}}, "'gold' needs a rank for each of 2 answers"),
            ({"comparison": asked | {"prompt": asked["prompt"] | {"messages": []}}}, "the prompt has no message"),
            ({"comparison": asked | {"items": asked["items"] * 6}, "labels": []}, "12 answers; .* at most 10"),
            ({"labels": [label | {"at": 1.7e12}]}, "at is a time in seconds since 1970, not 1700000000000"),
            ({"labels": [label | {"campaign_version": 2**70}]}, "campaign_version is a number from 1"),
            ({"labels": [label | {"judgment": said | {"strength": 5}}]}, "strength goes from 1"),
            ({"labels": [label | {"judgment": said | {"strength": -1}}]}, "strength goes from 1"),
            ({"labels": [label | {"judgment": said | {"axes": {"overall": 9}}}]}, "axes need whole numbers"),
            ({"labels": [label | {"judgment": said | {"axes": {"overall": "x"}}}]}, "axes need whole numbers"),
            ({"labels": [label | {"judgment": said | {"shown_order": [0, 2]}}]}, "shown_order needs each of 0 to 1"),
            ({"labels": [label | {"judgment": said | {"shown_order": [1]}}]}, "shown_order needs each of 0 to 1"),
            ({"labels": [label | {"judgment": said | {"ratings": [8, 1]}}]}, "ratings need 2 numbers from 1 to 7"),
            ({"labels": [label | {"judgment": said | {"checks": {"cites": [True]}}}]}, "checks need 2 answers"),
        ):
            bad = write(tmp_path, [good, good | change], "bad.jsonl")
            with pytest.raises(PrefloopError, match=rf"bad\.jsonl:2.*{message}"):
                import_items(store, None, "s", bad)
            assert import_items(store, None, "s", bad, skip_bad=True).skipped == 1
        for name in ("\0", "\ud800"):
            odd = good | {"labels": [label | {"judgment": said | {"annotator": name}}]}
            with pytest.raises(PrefloopError, match="holds a character that is no text"):
                import_items(store, None, "t", write(tmp_path, [odd], "odd.jsonl"))


@pytest.mark.parametrize("depth", [500, 990, 100_000])
def test_deep_rows_are_named(tmp_path: Path, depth: int) -> None:
    row = json.dumps(pair()).replace('"Question 0?"', '[{"role": "user", "content": "Hi", "x": %s}]')
    (tmp_path / "deep.jsonl").write_text(row % ("[" * depth + "]" * depth))
    own = '{"comparison": {"id": "c", "prompt": {"id": "p", "messages": [{"role": "user", "content": "Hi"}], "checks": '
    own += '{"x": %s}}, "items": []}, "labels": []}'
    (tmp_path / "own.jsonl").write_text(own % ("[" * depth + "]" * depth))
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        for name in ("deep.jsonl", "own.jsonl"):
            with contextlib.suppress(PrefloopError):  # read, or named: but no crash
                import_items(store, None, "r", tmp_path / name)


_IMPORTER = """
import sys
from prefloop.data.jsonl import read_preferences
from prefloop.data.pairing import comparison_id
from prefloop.data.rows import read_rows
from prefloop.store import imports
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.labels import open_store
imports._MANY_COMPARISONS = 7
flush = imports._Batch.flush
def told(batch):
    flush(batch)
    print("on disk", flush=True)
imports._Batch.flush = told
with open_store(sys.argv[1]) as store:
    imports.import_items(store, Campaigns(store.engine, Clock()), sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("flushes", [1, 4])
def test_a_killed_import_is_done_again_and_gives_the_same(url: str, empty: Scene, tmp_path: Path, flushes: int) -> None:
    rows = [battle("model_a" if i % 3 else None, i, judge=f"j{i % 5}", mix=f"m{i % 2}") for i in range(60)]
    rows += [{"prompt": f"P{i % 10}", "completion": f"text {i}"} for i in range(40)]
    path = write(tmp_path, rows)
    with open_store(f"sqlite:///{tmp_path / 'whole.db'}") as store:
        import_items(store, None, RUN, path)
        export(store, RUN, tmp_path / "whole.jsonl")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _IMPORTER, url, RUN, str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        for _ in range(flushes):
            assert worker.stdout.readline() == "on disk\n"
        worker.send_signal(signal.SIGKILL)
    there = len(empty.store.comparisons(RUN)) - 1
    assert 7 * flushes <= there < 70
    import_items(empty.store, empty.campaigns, RUN, path)
    assert empty.store.verify()
    export(empty.store, RUN, tmp_path / "again.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()[1:]]
    expected = [json.loads(line) for line in whole]
    for row in (*again, *expected):
        for inner in row["pairs"]:
            del inner["posterior"]  # of all labels together
    assert again == expected
    strata = {(row["slice"], row["mix"]): (row["items"], row["counted"]) for row in _strata(empty)}
    assert strata == {("", ""): (11, 0), ("", "m0"): (30, 20), ("", "m1"): (30, 20)}


def _strata(here: Scene) -> list[Any]:
    from sqlalchemy import select

    from prefloop.store import db, tables

    with db.transaction(here.engine, write=False) as connection:
        return list(connection.execute(select(tables.strata)).mappings())


def test_real_preferences_go_in_and_come_out_as_the_loop_reads_them(tmp_path: Path) -> None:
    folder = os.environ.get("PREFLOOP_TEST_DATA")
    if not folder:
        pytest.skip("not run without PREFLOOP_TEST_DATA: preferences of real people (hh-rlhf)")
    path = Path(folder) / "hh_rlhf_harmless" / "pairs.jsonl.gz"
    preferences = {comparison_id(sorted(p.items, key=lambda i: i.id)): p for p in read_preferences(path, skip_bad=True)}
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        done = import_items(store, None, "r", path, skip_bad=True)
        assert (done.comparisons, done.labels) == (len(preferences), len(preferences))
        assert done.labels + done.known_labels + done.skipped == sum(1 for _ in read_rows(path))
        export(store, "r", tmp_path / "p.jsonl", "preferences")
    back = read_preferences(tmp_path / "p.jsonl")
    assert len(back) == len(preferences)
    for found in back:
        before = preferences[comparison_id(found.items)]
        assert found.prompt == before.prompt
        assert found.target is not None
        assert found.items[0 if found.target > 0.5 else 1] == before.items[0]


def test_many_rows_go_in_by_chunks(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_MANY_COMPARISONS", 10)
    here = stage(plain(), [comparison("there")])
    path = write(tmp_path, [battle("model_b", i % 35, judge=f"j{i}") for i in range(105)])
    done = import_items(here.store, here.campaigns, RUN, path)
    assert done == Imported(comparisons=35, labels=105, items=35)
    assert {winner for _, winner, _ in votes(here)} == {f"no {i}" for i in range(35)}
