"""Labels out of the store and in again, elsewhere, with nothing lost and nothing doubled."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import hmac
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, text

from prefloop.data.jsonl import read_demonstrations, read_preferences
from prefloop.data.rows import read_rows
from prefloop.data.tables import unpacked
from prefloop.store import db, exchange, tables
from prefloop.store.answers import Answer
from prefloop.store.campaigns import Campaigns, Item
from prefloop.store.exchange import CSV_COLUMNS, FORMATS, Labeled, export, manifest_path
from prefloop.store.imports import import_items
from prefloop.store.labels import Label, Store, open_store
from prefloop.types import CANT_JUDGE, Comparison, Judgment, PrefloopError, Segment, from_json, to_json
from tests.store.scene import RUN, Scene, comparison, plain

pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

KEY = b"0123456789abcdef"
ENDINGS = {"jsonl": "a.jsonl", "parquet": "a.parquet", "csv": "a.csv", "datasets": "folder"}
Stage = Callable[..., Scene]


def odd_comparison(name: str, size: int = 2) -> Comparison:
    """Texts that formats trip over, tokens, log-probs, a checkpoint."""
    made = comparison(name, size, slice="odd ünïcode")
    items = tuple(
        dataclasses.replace(
            item,
            text=f'{item.text} "\r\n, \u2028 日本 \0 \ud800 =cmd',
            segments=(Segment(author="policy", tokens=(1, 2), logprobs=(-0.5, -1e-12)),),
            seed=2**40,
        )
        for item in made.items
    )
    return dataclasses.replace(made, items=items, prompt=dataclasses.replace(made.prompt, checks={"sentences": 2}))


def labels_of(folder_or_file: Path) -> list[Labeled]:
    rows = [unpacked(Labeled, row, "here") for _, row in read_rows(folder_or_file)]
    return [from_json(Labeled, row) for row in rows]


def digest(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()} if path.is_dir() else {"": path.read_bytes()}


@pytest.fixture
def played(stage: Stage) -> Scene:
    """Three labelers, one with an account and a group; late, extra, undone, repeated and gold answers; edits."""
    made = [odd_comparison("c0"), comparison("c1"), comparison("four", 4)]
    config = plain(overlap=2, rubric=("cites",), ratings=True, flags=("both bad",), axes=("overall", "honesty"))
    here = stage(config, made)
    with db.transaction(here.engine, write=True) as connection:
        row = {"name": "ada", "role": "labeler", "group": "nurses", "created": 0.0}
        connection.execute(insert(tables.accounts).values(row))
    for name in ("bob", "ada", "eve"):
        for turn in range(3):
            if (task := here.next(name)) is None:
                break
            many = len(task.shown)
            said: dict[str, Any] = (
                {"axes": {"overall": -2 + turn, "honesty": 4}} if many == 2 else {"ranks": range(many)}
            )
            answer = Answer(
                **said,
                ratings=range(1, many + 1),
                checks={"cites": [turn % 2 == 0] * many},
                flags=["both bad"] if turn else [],
                edit="A better one." if name == "ada" and many == 2 else "",
                rationale="=because\x1b[31m \0",
                seconds=12,
            )
            here.answers.submit(task.id, name, answer, nonce=f"{name}{turn}")
            if name == "bob" and turn == 1:
                again = here.answers.withdraw(here.campaign, name)
                assert again is not None
                unjudged = Answer(flags=[CANT_JUDGE], rationale="?")
                here.answers.submit(again.id, name, unjudged, nonce="undone")
    return here


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_says_what_was_said_and_twice_the_same_bytes(played: Scene, tmp_path: Path, format: str) -> None:
    paths = [tmp_path / str(i) / ENDINGS.get(format, "a.jsonl") for i in range(2)]
    one, two = (export(played.store, RUN, path, format) for path in paths)
    assert one == two
    assert digest(paths[0]) == digest(paths[1])
    manifest = json.loads(manifest_path(paths[0]).read_text())
    assert manifest == one
    for name, content in digest(paths[0]).items():
        assert manifest["files"][name or paths[0].name] == hashlib.sha256(content).hexdigest()
    with db.transaction(played.engine, write=False) as connection:
        stored = connection.execute(text("SELECT count(*) FROM judgments WHERE latest AND NOT withdrawn")).scalar()
    assert (manifest["comparisons"], manifest["labels"], manifest["run"]) == (3, stored, RUN)
    assert manifest["log_head"] == played.store.verify().head
    assert manifest["campaign"]["1"]["rubric"] == ["cites"]
    if format in ("jsonl", "parquet", "datasets"):
        assert manifest["schema"]["labels[].judgment.annotator"] == "str"
        made = labels_of(paths[0])
        assert [row.comparison for row in made] == played.store.comparisons(RUN)
        standing = [label.judgment for row in made for label in row.labels if label.status in ("counted", "extra")]
        by_key = {(j.comparison_id, j.annotator): j for j in played.store.judgments(RUN)}
        assert {(j.comparison_id, j.annotator): j for j in standing} == by_key
        for row in made:
            assert [label.judgment.annotator for label in row.labels] == sorted(
                label.judgment.annotator for label in row.labels
            )
            assert row.group == row.comparison.prompt.id
            assert all(pair.labels <= len(row.labels) for pair in row.pairs)
        groups = {label.judgment.annotator: label.group for row in made for label in row.labels}
        assert groups == {"ada": "nurses", "bob": "", "eve": ""}
        unjudged = [label for row in made for label in row.labels if label.status == "unjudged"]
        assert [(label.judgment.annotator, label.judgment.flags) for label in unjudged] == [("bob", (CANT_JUDGE,))]
        assert all(
            label.at and label.campaign_version == 1 and label.judgment.shown_order for label in standing_of(made)
        )


def standing_of(made: list[Labeled]) -> list[Label]:
    return [label for row in made for label in row.labels]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "datasets"])
@pytest.mark.parametrize("key", [None, KEY])
def test_an_export_goes_in_elsewhere_and_comes_out_the_same(
    played: Scene, tmp_path: Path, format: str, key: bytes | None
) -> None:
    one, two = (tmp_path / str(i) / ENDINGS[format] for i in range(2))
    manifest = export(played.store, RUN, one, key=key)
    with open_store(f"sqlite:///{tmp_path / 'elsewhere.db'}") as store:
        done = import_items(store, None, "other", one)
        assert (done.comparisons, done.labels, done.known_labels) == (3, manifest["labels"], 0)
        again = import_items(store, None, "other", one)
        assert (again.comparisons, again.labels, again.known_labels) == (0, 0, manifest["labels"])
        other = export(store, "other", two)
        assert other["files"] == manifest["files"]
        assert store.verify().judgments == manifest["labels"]
    assert digest(one) == digest(two)
    names = {label.judgment.annotator for row in labels_of(two) for label in row.labels}
    shown = {
        name if key is None else hmac.new(KEY, name.encode(), "sha256").hexdigest()[:10]
        for name in ("ada", "bob", "eve")
    }
    assert names == shown
    if key:
        content = b"".join(digest(one).values()) + manifest_path(one).read_bytes()
        assert not any(name in content for name in (b'"ada"', b'"bob"', b'"eve"'))


texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=4).filter(
    lambda s: not any("\ud800" <= c <= "\udfff" for c in s)
)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4)


@st.composite
def labeled(draw: st.DrawFn, id_: str, size: int) -> list[Label]:
    said = []
    for annotator in draw(st.lists(names, max_size=3, unique=True)):
        status = draw(st.sampled_from(["counted", "extra", "gold", "repeat", "unjudged"]))
        soft = size == 2 and draw(st.booleans())
        unjudged = status == "unjudged"
        ranking = tuple(draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size)))
        judgment = Judgment(
            comparison_id=id_,
            annotator=annotator,
            ranking=None if soft or unjudged else ranking,
            probability=draw(st.sampled_from([0, 0.25, 1, 1 / 3])) if soft and not unjudged else None,
            strength=draw(st.none() | st.integers(1, 4)),
            axes=draw(st.dictionaries(texts, st.integers(-4, 4), max_size=2)),
            flags=(CANT_JUDGE,) if unjudged else tuple(draw(st.lists(texts, max_size=2))),
            ratings=draw(st.just(()) | st.tuples(*[st.integers(1, 7)] * size)),
            checks=draw(st.dictionaries(texts, st.tuples(*[st.booleans()] * size), max_size=2)),
            edit=draw(texts),
            rationale=draw(texts),
            shown_order=tuple(draw(st.permutations(range(size)))),
            seconds=draw(st.none() | st.integers(0, 9) | st.floats(0, 9)),
        )
        said.append(
            Label(
                judgment=judgment,
                simulated=annotator < "n",
                group="g" if annotator < "n" else "",
                status=status,
                late=draw(st.booleans()),
                uniform=draw(st.booleans()),
                campaign_version=draw(st.none() | st.integers(1, 3)),
                at=draw(st.none() | st.floats(0, 2e9)),
                server_seconds=draw(st.none() | st.floats(0, 1e4)),
            )
        )
    return said


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_any_labels_make_the_round_trip(url: str, tmp_path: Path, format: str) -> None:
    count = 0

    @settings(max_examples=25)
    @given(data=st.data(), sizes=st.lists(st.sampled_from([2, 2, 3]), min_size=1, max_size=3))
    def check(data: st.DataObject, sizes: list[int]) -> None:
        nonlocal count
        count += 1
        first, second, one, two = (
            f"{count}a",
            f"{count}b",
            tmp_path / f"{count}a.{format}",
            tmp_path / f"{count}b.{format}",
        )
        made = [odd_comparison(f"{count}-{i}", size) for i, size in enumerate(sizes)]
        said = [label for c in made for label in data.draw(labeled(c.id, len(c.items)))]
        store.add_comparisons(first, made)
        for label in data.draw(st.permutations(said)):
            store.add_labels(first, [label])
        manifest = export(store, first, one)
        assert import_items(store, None, second, one).labels == len(said) == manifest["labels"]
        export(store, second, two)
        assert one.read_bytes() == two.read_bytes()
        back = [label.judgment for row in labels_of(one) for label in row.labels]
        key = lambda j: (j.comparison_id, j.annotator)  # noqa: E731
        expected = [from_json(Judgment, to_json(label.judgment)) for label in said]
        assert sorted(back, key=key) == sorted(expected, key=key)

    with open_store(url) as store:
        check()
        store.verify()


def test_what_a_campaign_was_told_of_an_item_goes_along(stage: Stage, tmp_path: Path) -> None:
    gold = {"ranking": [0, 1], "note": "known"}
    items = [Item(comparison_id="a", mix="hard", priority=0.5), Item(comparison_id="b", held="identical answers")]
    here = stage(plain(), [comparison(name) for name in "abc"], [*items, Item(comparison_id="c", gold=gold)])
    one, two, three = (tmp_path / f"{i}.jsonl" for i in range(3))
    export(here.store, RUN, one)
    with open_store(f"sqlite:///{tmp_path / 'elsewhere.db'}") as store:
        campaigns = Campaigns(store.engine, here.clock)
        campaigns.create("r", plain(), by="ada")
        done = import_items(store, campaigns, "r", one)
        assert (done.items, done.held) == (3, 1)
        export(store, "r", two)
        import_items(store, None, "waiting", one)
        export(store, "waiting", three)
    assert one.read_bytes() == two.read_bytes()
    assert [(row.mix, row.priority, row.held) for row in labels_of(two)] == [
        ("hard", 0.5, ""),
        ("", 0.0, "identical answers"),
        ("", 0.0, ""),
    ]
    # Only a campaign holds back.
    assert [(row.priority, row.held) for row in labels_of(three)] == [(0.5, ""), (0.0, ""), (0.0, "")]


def test_a_changed_export_is_refused(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store:
        store.add_comparisons("r", [comparison("a")])
        for path in (tmp_path / "labels.jsonl", tmp_path / "folder"):
            export(store, "r", path)
            file = path / "data-00000-of-00001.arrow" if path.is_dir() else path
            file.write_bytes(file.read_bytes().replace(b"Answer 0", b"Answer 9"))
            with pytest.raises(PrefloopError, match=rf"not what {path.name}\.manifest\.json describes"):
                import_items(store, None, "copy", path)
            assert store.comparisons("copy") == []
            for odd in ("[]", '{"files": 3}', "{", "{}"):
                manifest_path(path).write_text(odd)
                with pytest.raises(PrefloopError, match="no manifest of labels"):
                    import_items(store, None, "copy", path)


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store:
        with pytest.raises(PrefloopError, match="Run 'nobody' has no comparisons"):
            export(store, "nobody", tmp_path / "a.jsonl")
        store.add_comparisons("r", [comparison("a")])
        for path, format, message in (
            ("a.xls", "", "name one of the formats jsonl, parquet"),
            ("a.jsonl", "xls", "name one of the formats jsonl, parquet"),
            ("a.jsonl", "preferences", "nothing has been compared yet"),
            ("a.jsonl", "demonstrations", "nobody wrote a better answer yet"),
            ("a\0.jsonl", "", "cannot be written"),
            ("x" * 300 + ".jsonl", "", "cannot be written"),
            ("labels.db/a.jsonl", "", "cannot be written"),
        ):
            with pytest.raises(PrefloopError, match=message):
                export(store, "r", tmp_path / path, format)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("labels.db")) == []


def test_two_names_never_share_a_pseudonym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store:
        store.add_comparisons("r", [comparison("a")])
        said = [Judgment(comparison_id="a", annotator=name, ranking=(0, 1)) for name in ("ada", "bob")]
        store.add_judgments("r", said, simulated=False)
        keys = [export(store, "r", tmp_path / f"{i}.jsonl", key=bytes([i]))["files"] for i in range(2)]
        assert len({*keys[0].values(), *keys[1].values()}) == 2
        monkeypatch.setattr(exchange, "_PSEUDONYM", 0)
        with pytest.raises(PrefloopError, match="Two annotators get the same pseudonym"):
            export(store, "r", tmp_path / "a.jsonl", key=b"k")


def test_preferences_are_what_the_stages_read(url: str, tmp_path: Path) -> None:
    """Of two answers the posterior and the margin; of four one ranking, by whom each is expected to beat."""
    pair, four, alone = comparison("pair"), comparison("four", 4), comparison("alone")
    with open_store(url) as store:
        store.add_comparisons("r", [pair, four, alone])
        said = [Judgment(comparison_id="pair", annotator=n, ranking=(1, 0), strength=4) for n in ("ada", "bob")]
        said += [Judgment(comparison_id="four", annotator="ada", ranking=(3, 0, 1, 1))]
        store.add_judgments("r", said, simulated=False)
        store.add_judgments(
            "r", [Judgment(comparison_id="four", annotator="sim", ranking=(3, 1, 0, 2))], simulated=True
        )
        export(store, "r", tmp_path / "p.jsonl", "preferences")
        rows = {row.comparison.id: row for row in _exported(store, tmp_path)}
    one, many = read_preferences(tmp_path / "p.jsonl")
    assert (one.items, one.ranking, one.margin, one.weight, one.group) == (pair.items, None, 1.0, 1.0, "p-pair")
    assert one.target == rows["pair"].pairs[0].posterior
    assert one.target is not None
    assert one.target < 0.5
    assert (many.items, many.target, many.group, many.simulated) == (four.items, None, "p-four", False)
    # item 1 beats 2 as often as 2 beats 1; both beat 3, who is tied with 2 once; 0 loses always
    assert many.ranking is not None
    assert many.ranking[0] == 3
    assert many.ranking[3] == 2
    assert many.weight == pytest.approx(1 / 6)
    assert rows["alone"].pairs == ()


def _exported(store: Store, folder: Path) -> list[Labeled]:
    export(store, "r", folder / "rows.jsonl")
    return labels_of(folder / "rows.jsonl")


def test_edits_become_demonstrations(played: Scene, tmp_path: Path) -> None:
    export(played.store, RUN, tmp_path / "d.jsonl", "demonstrations")
    found = read_demonstrations(tmp_path / "d.jsonl")
    assert {d.completion for d in found} == {"A better one."}
    edited = {j.comparison_id for j in played.store.judgments(RUN) if j.edit}
    assert {d.prompt.id for d in found} == {f"p-{name}" for name in edited}
    assert len({d.id for d in found}) == len(found)


def test_a_spreadsheet_gets_a_row_a_label(played: Scene, tmp_path: Path) -> None:
    manifest = export(played.store, RUN, tmp_path / "a.csv")
    content = (tmp_path / "a.csv").read_bytes()
    assert b"\x1b" not in content
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert header == list(CSV_COLUMNS)
    assert len(rows) == manifest["labels"] == manifest["rows"]
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert {row["rationale"] for row in table} == {"'=because\\x1b[31m \\x00", "?"}
    assert {row["annotator_group"] for row in table if row["annotator"] == "ada"} == {"nurses"}
    for row in table:
        assert (row["more_answers"] == "") == (row["comparison"] != "four")
        assert row["seconds"] in ("12.0", "")
    exported = {(label.judgment.comparison_id, label.judgment.annotator): label for label in _said(played, tmp_path)}
    for row in table:
        label = exported[(row["comparison"], row["annotator"])]
        assert row["status"] == label.status
        assert json.loads(row["ranking"] or "null") == to_json(label.judgment.ranking)
        assert json.loads(row["shown_order"]) == to_json(label.judgment.shown_order)


def _said(here: Scene, folder: Path) -> list[Label]:
    export(here.store, RUN, folder / "rows.jsonl")
    return standing_of(labels_of(folder / "rows.jsonl"))


def test_packed_lines_are_the_same_lines(played: Scene, tmp_path: Path) -> None:
    export(played.store, RUN, tmp_path / "a.jsonl")
    export(played.store, RUN, tmp_path / "a.jsonl.gz")
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()
    with open_store(f"sqlite:///{tmp_path / 'elsewhere.db'}") as store:
        assert import_items(store, None, "r", tmp_path / "a.jsonl.gz").comparisons == 3


def test_an_export_is_of_one_moment(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an export runs, others label; it holds what was there when it began, counted in a manifest that fits."""
    many = [comparison(f"{i:03}") for i in range(30)]
    with open_store(url) as store, open_store(url) as other:
        store.add_comparisons("r", many)
        before = [Judgment(comparison_id=c.id, annotator="ada", ranking=(0, 1)) for c in many]
        store.add_judgments("r", before, simulated=False)
        monkeypatch.setattr(exchange, "_CHUNK", 10)
        began, counts = threading.Event(), []
        inner = exchange._labels

        def slow(*arguments: Any) -> Any:
            if began.is_set():
                return inner(*arguments)
            found = inner(*arguments)
            began.set()
            late = [Judgment(comparison_id=c.id, annotator="bob", ranking=(1, 0)) for c in many]
            worker = threading.Thread(target=lambda: counts.append(other.add_judgments("r", late, simulated=False)))
            worker.start()
            worker.join()
            return found

        monkeypatch.setattr(exchange, "_labels", slow)
        manifest = export(store, "r", tmp_path / "a.jsonl")
        assert counts == [30]
        assert manifest["labels"] == 30
        assert all(
            [label.judgment.annotator for label in row.labels] == ["ada"] for row in labels_of(tmp_path / "a.jsonl")
        )
        assert export(store, "r", tmp_path / "b.jsonl")["labels"] == 60


def test_undo_after_an_export_leaves_the_export_as_it_was(stage: Stage, tmp_path: Path) -> None:
    here = stage(plain(), [comparison("a")])
    assert here.label("ada") is not None
    export(here.store, RUN, tmp_path / "a.jsonl")
    content = (tmp_path / "a.jsonl").read_bytes()
    here.answers.withdraw(here.campaign, "ada")
    assert export(here.store, RUN, tmp_path / "b.jsonl")["labels"] == 0
    assert (tmp_path / "a.jsonl").read_bytes() == content
    assert export(here.store, RUN, tmp_path / "c.jsonl")["log_head"] == here.store.verify().head
