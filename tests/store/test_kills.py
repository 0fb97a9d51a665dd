"""A process that is killed at any point leaves whole labels, imports, exports and schemas: line 26 of the survey's
checklist (labeling.md, 3.3). Kills of the server at random moments are in tests/web/test_faults.py."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, inspect, select, text

from prefloop.store import db, exchange, tables
from prefloop.store.labels import Store, open_store
from tests.store import dying
from tests.store.scene import RUN, Scene, comparison, plain
from tests.store.test_labels import migrate

Stage = Callable[..., Scene]


def test_line_26_a_label_is_whole_or_not_there_wherever_its_process_dies(stage: Stage, url: str) -> None:
    here = stage(plain(overlap=2), [comparison("a")])
    deaths = itertools.count(1)
    while not dying.survives(next(deaths), dying.label, url, RUN, "ada"):
        item, judged, leased = (
            here.item("a"),
            here.rows(),
            [row for row in here.rows("tasks") if row["state"] == "open"],
        )
        assert item["counted"] == len(judged) <= 1
        assert item["taken"] == len(judged) + len(leased) <= 1
        assert here.store.verify().judgments == len(judged)
    assert next(deaths) > 20
    (row,) = here.rows()
    assert (row["content"]["rationale"], row["status"], here.item("a")["counted"]) == ("so", "counted", 1)


def rows_of(store: Store, run: str) -> list[Any]:
    """What an import makes, but for numbers, times and the order of uniform picks."""
    names = {
        "comparisons": (
            "id",
            "prompt",
            "items",
            "slice",
            "mix",
            "gold",
            "held",
            "needed",
            "counted",
            "taken",
            "shared",
        ),
        "judgments": ("comparison_id", "annotator", "repeat", "version", "latest", "status", "content"),
        "strata": ("slice", "mix", "items", "needed", "counted"),
        "campaign_versions": ("version", "config"),
    }
    with db.transaction(store.engine, write=False) as connection:
        return [
            sorted(json.dumps(list(row)) for row in connection.execute(select(*columns).where(table.c.run == run)))
            for name, wanted in names.items()
            for table in [tables.metadata.tables[name]]
            for columns in [[table.c[column] for column in wanted]]
        ]


def test_line_26_an_import_that_was_killed_is_done_again_with_the_same_result(url: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs" / "pairs.jsonl"
    path.parent.mkdir()
    rows = [{"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dying.take_in(url, "whole", path)
    with open_store(url) as store:
        whole = rows_of(store, "whole")
        for at in itertools.count(3, 7):
            run = f"run-{at}"
            survived = dying.survives(at, dying.take_in, url, run, path)
            store.verify()
            if survived:
                break
            dying.take_in(url, run, path)
            assert rows_of(store, run) == whole
        assert at > 60 and rows_of(store, run) == whole


def test_line_26_an_export_that_was_killed_leaves_a_whole_one_or_none(stage: Stage, url: str, tmp_path: Path) -> None:
    here, old, found = stage(plain(), [comparison(n) for n in "abc"]), tmp_path / "old" / "labels.jsonl", set[bytes]()
    here.label("ada")
    exchange.export(here.store, RUN, old)
    before = old.read_bytes()
    here.label("ada")
    exchange.export(here.store, RUN, tmp_path / "whole" / "labels.jsonl")
    after = (tmp_path / "whole" / "labels.jsonl").read_bytes()
    for at in itertools.count(2, 2):
        new = tmp_path / f"new-{at}" / "labels.jsonl"
        survived = dying.survives(at, dying.give_out, url, RUN, new)
        assert not new.exists() or new.read_bytes() == after
        exchange.check_manifest(new)
        old.write_bytes(before)
        dying.survives(at, dying.give_out, url, RUN, old)
        found.add(old.read_bytes())
        if survived:
            break
    assert at > 8 and found == {before, after}
    exchange.export(here.store, RUN, old)
    exchange.check_manifest(old)


def test_line_26_a_migration_that_was_killed_leaves_the_schema_before(url: str) -> None:
    engine = create_engine(db._parse(url))
    with engine.begin() as connection:
        migrate(connection, "0001")
        connection.execute(text("INSERT INTO annotators VALUES ('ada', :no)"), {"no": False})
    before, deaths = columns_of(engine), itertools.count(2, 6)
    while not dying.survives(at := next(deaths), dying.migrate, url):
        with engine.connect() as connection:
            assert connection.execute(text(f"SELECT version_num FROM {db.VERSION_TABLE}")).scalar() == "0001"
            assert connection.execute(text("SELECT name FROM annotators")).scalars().all() == ["ada"]
        assert columns_of(engine) == before
    assert at > 40
    engine.dispose()
    with open_store(url) as store:
        store.verify()


def columns_of(engine: Engine) -> dict[str, list[str]]:
    found = inspect(engine)
    return {name: [column["name"] for column in found.get_columns(name)] for name in found.get_table_names()}
