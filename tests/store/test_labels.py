from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from prefloop.store import db, tables
from prefloop.store.clock import Clock
from prefloop.store.labels import RunLabels, open_store
from prefloop.store.overview import Filter, Overview
from prefloop.types import Comparison, Completion, Judgment, Message, PrefloopError, Prompt, Sampling, Segment, to_json


def completion(name: str, said: str) -> Completion:
    return Completion(
        id=name,
        prompt_id="p",
        segments=(Segment(author="policy", tokens=(5, 2), logprobs=(-0.1, -1e-12)),),
        text=said,
        finish_reason="stop",
        sampling=Sampling(temperature=0.7),
        seed=2**40,
    )


def comparison(name: str, *said: str) -> Comparison:
    prompt = Prompt(
        id="p", messages=(Message(role="user", content="nul \0, lone \ud800, naïve 'q' %s"),), checks={"sentences": 2}
    )
    return Comparison(
        id=name, prompt=prompt, items=tuple(completion(f"{name}{i}", s) for i, s in enumerate(said or ("yes", "no")))
    )


def judgment(name: str, annotator: str = "ada", probability: float = 1.0) -> Judgment:
    return Judgment(
        comparison_id=name, annotator=annotator, probability=probability, axes={"safe": 1}, rationale="because"
    )


def test_records_come_back_as_they_went_in_and_in_order(url: str) -> None:
    added = [comparison("z"), comparison("a"), comparison("m", "x", "y", "z")]
    judged = [
        judgment("m", "ada", 0.5),
        judgment("a", "ada", 0.25),
        Judgment(comparison_id="m", annotator="bob", ranking=(0, 2, 0), shown_order=(2, 0, 1), seconds=1.5),
    ]
    judged[0] = dataclasses.replace(judged[0], probability=None, ranking=(1, 0, 0))
    with open_store(url) as store:
        assert store.add_comparisons("r", added) == 3
        assert store.add_judgments("r", judged, simulated=False) == 3
    with open_store(url) as store:
        assert store.comparisons("r") == added
        assert store.judgments("r") == judged
        assert store.pending("r", "ada") == [added[0]]
        assert store.pending("r", "bob") == added[:2]
        assert store.pending("r", "eve") == added
        assert not (store.comparisons("other") or store.judgments("other") or store.pending("other", "ada"))


def test_adding_twice_changes_nothing_and_other_content_is_an_error(url: str) -> None:
    with open_store(url) as store:
        assert store.add_comparisons("r", [comparison("a"), comparison("a"), comparison("b")]) == 2
        assert store.add_comparisons("r", [comparison("b"), comparison("c")]) == 1
        assert store.add_comparisons("s", [comparison("a", "other", "text")]) == 1
        with pytest.raises(PrefloopError, match="Comparison b of run r is already there with other content"):
            store.add_comparisons("r", [comparison("d"), comparison("b", "other", "text")])
        with pytest.raises(PrefloopError, match="Comparison e of run r"):
            store.add_comparisons("r", [comparison("e"), comparison("e", "other", "text")])
        assert [c.id for c in store.comparisons("r")] == ["a", "b", "c"]
        with pytest.raises(PrefloopError, match="has 1 items"):
            store.add_comparisons("r", [comparison("f", "alone")])


def test_the_first_judgment_of_a_key_stays(url: str) -> None:
    with open_store(url) as store:
        store.add_comparisons("r", [comparison("a")])
        store.add_comparisons("s", [comparison("a")])
        assert store.add_judgments("r", [judgment("a", probability=0.9), judgment("a")], simulated=False) == 1
        assert store.add_judgments("r", [judgment("a", probability=0.1), judgment("a", "bob")], simulated=False) == 1
        assert store.add_judgments("s", [judgment("a", probability=0.1)], simulated=False) == 1
        assert [(j.annotator, j.probability) for j in store.judgments("r")] == [("ada", 0.9), ("bob", 1.0)]
        assert store.annotators("r") == {"ada": False, "bob": False}
        assert store.runs() == [
            RunLabels(run="r", comparisons=1, judgments=2),
            RunLabels(run="s", comparisons=1, judgments=1),
        ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (judgment("ghost"), "run r has no such comparison"),
        (judgment("a", probability=1.5), "from 0 to 1 about two items"),
        (judgment("a", probability=math.nan), "from 0 to 1 about two items"),
        (judgment("three"), "about two items"),
        (Judgment(comparison_id="a", annotator="ada"), "either a ranking or a probability"),
        (Judgment(comparison_id="a", annotator="ada", ranking=(0, 1), probability=1.0), "either a ranking or"),
        (Judgment(comparison_id="three", annotator="ada", ranking=(0, 1)), "needs 3 ranks"),
        (Judgment(comparison_id="a", annotator="ada", ranking=(0, -1)), "needs 2 ranks"),
        (Judgment(comparison_id="a", annotator="ada", ranking=(0, 1), strength=0), "strength goes from 1"),
        (dataclasses.replace(judgment("a"), seconds=math.inf), "not JSON compliant"),
    ],
)
def test_a_bad_judgment_takes_its_whole_batch_with_it(tmp_path: Path, bad: Judgment, message: str) -> None:
    with open_store(f"sqlite:///{tmp_path / 'labels.db'}") as store:
        store.add_comparisons("r", [comparison("a"), comparison("b"), comparison("three", "x", "y", "z")])
        with pytest.raises(PrefloopError, match=message):
            store.add_judgments("r", [judgment("b"), bad], simulated=False)
        assert store.judgments("r") == []


def test_real_and_simulated_annotators_keep_apart(url: str) -> None:
    with open_store(url) as store:
        store.add_comparisons("r", [comparison("a")])
        store.add_judgments("r", [judgment("a", "simulated-80")], simulated=True)
        with pytest.raises(PrefloopError, match="'simulated-80' is known as simulated, not a real person"):
            store.add_judgments("r", [judgment("a", "simulated-80")], simulated=False)
        assert store.annotators("r") == {"simulated-80": True}


def test_more_than_one_chunk(url: str) -> None:
    many = [comparison(f"{i:04}") for i in range(1201)]
    with open_store(url) as store:
        assert store.add_comparisons("r", many + many) == 1201
        judged = [judgment(c.id) for c in many]
        assert store.add_judgments("r", judged + judged, simulated=True) == 1201
        assert store.comparisons("r") == many
        assert store.judgments("r") == judged


def test_writers_in_threads_take_turns(url: str) -> None:
    names = [f"{i:02}" for i in range(20)]
    counts: list[int] = []

    def work(order: list[str]) -> None:
        with open_store(url) as store:
            store.add_comparisons("r", [comparison(name) for name in order])
            counts.append(sum(store.add_judgments("r", [judgment(name)], simulated=False) for name in order))

    threads = [threading.Thread(target=work, args=(order,)) for order in (names, names[::-1], names[5:] + names[:5])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_store(url) as store:
        assert sum(counts) == 20
        assert sorted(j.comparison_id for j in store.judgments("r")) == names


_WRITER = """
import sys
from tests_labels import comparison, judgment
from prefloop.store.labels import open_store
with open_store(sys.argv[1]) as store:
    for i in range(10**6):
        names = [f"{i}-{k}" for k in range(3)]
        store.add_comparisons("r", [comparison(name) for name in names])
        store.add_judgments("r", [judgment(name) for name in names], simulated=False)
        print(i, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 20])
def test_a_killed_writer_loses_nothing_it_acknowledged(url: str, tmp_path: Path, acknowledged: int) -> None:
    (tmp_path / "tests_labels.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", _WRITER, url]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        told = [int(writer.stdout.readline()) for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    with open_store(url) as store:
        kept = [j.comparison_id for j in store.judgments("r")]
        whole = len(kept) // 3
        assert kept == [f"{i}-{k}" for i in range(whole) for k in range(3)]
        assert whole >= len(told) >= acknowledged
        assert len(store.comparisons("r")) in (3 * whole, 3 * whole + 3)
        missing = [judgment(c.id) for c in store.comparisons("r")]
        assert store.add_judgments("r", missing, simulated=False) == len(missing) - len(kept)


def test_migrations_make_the_tables_that_the_code_expects(url: str) -> None:
    engine = db.connect(url)
    with db.transaction(engine, write=False) as connection:
        options = {"version_table": db.VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata) == []
    engine.dispose()


def test_a_newer_schema_is_refused(url: str) -> None:
    engine = db.connect(url)
    with db.transaction(engine, write=True) as connection:
        connection.execute(text(f"UPDATE {db.VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(PrefloopError, match="schema 9999 is newer than this program; upgrade prefloop"):
        open_store(url)


def test_a_failed_migration_leaves_nothing_behind(url: str) -> None:
    engine = create_engine(db._parse(url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE annotators (name TEXT)"))
    with pytest.raises(PrefloopError, match="annotators"):
        open_store(url)
    with engine.connect() as connection:
        assert engine.dialect.get_table_names(connection) == ["annotators"]
    engine.dispose()


def migrate(connection: Connection, revision: str) -> None:
    settings = Config()
    settings.set_main_option("script_location", "prefloop.store:migrations")
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)


def test_labels_of_the_first_schema_come_along(url: str) -> None:
    engine = create_engine(db._parse(url))
    with engine.begin() as connection:
        migrate(connection, "0001")
        connection.execute(text("INSERT INTO annotators VALUES ('ada', :no)"), {"no": False})
        made = comparison("c")
        made = dataclasses.replace(made, prompt=dataclasses.replace(made.prompt, slice="law"))
        row = {"prompt": json.dumps(to_json(made.prompt)), "items": json.dumps(to_json(made.items))}
        statement = "INSERT INTO comparisons (run, id, size, prompt, items) VALUES ('r', 'c', 2, :prompt, :items)"
        connection.execute(text(statement), row)
        lacked = ("flags", "ratings", "checks", "edit")
        content = {name: value for name, value in to_json(judgment("c")).items() if name not in lacked}
        said = {"content": json.dumps(content)}
        statement = "INSERT INTO judgments (run, comparison_id, annotator, content) VALUES ('r', 'c', 'ada', :content)"
        connection.execute(text(statement), said)
    engine.dispose()
    with open_store(url) as store:
        assert store.comparisons("r") == [made] and store.judgments("r") == [judgment("c")]
        assert store.verify().judgments == 1
        overview = Overview(store.engine, Clock())
        (item,), (label,) = overview.items("r", Filter()), overview.labels("r", "c")
        assert (item.slice, item.counted, item.state) == ("law", 1, "held")
        assert label.content == to_json(judgment("c"))
        with db.transaction(store.engine, write=False) as connection:
            assert connection.execute(text("SELECT taken FROM comparisons")).scalar() == 1


def test_sqlite_settings(tmp_path: Path) -> None:
    engine = db.connect(f"sqlite:///{tmp_path / 'labels.db'}")
    with db.transaction(engine, write=False) as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    engine.dispose()
    assert found == ["wal", 2, 1]


def test_the_default_is_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store() as store:
        assert store.runs() == []
    assert (tmp_path / "prefloop.db").is_file()


def test_odd_databases_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a letter to my grandmother, not a database\n" * 100)
    for url, message in [
        (f"sqlite:///{tmp_path / 'text.db'}", "file is not a database"),
        (f"sqlite:///{tmp_path / 'none' / 'labels.db'}", "unable to open database file"),
        ("labels.db", "is no database URL"),
        ("mysql://localhost/labels", "SQLite or PostgreSQL, not mysql"),
        (f"postgresql://me:secret@/labels?host={tmp_path}", "No such file or directory"),
    ]:
        with pytest.raises(PrefloopError, match=message) as caught:
            open_store(url)
        assert "secret" not in str(caught.value)
