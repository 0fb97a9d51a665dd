from __future__ import annotations

import pytest

from prefloop.store import db
from prefloop.store.health import Health
from tests.store.scene import TurnedClock


def test_a_database_that_can_be_written_is_healthy_and_one_that_is_gone_is_not(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = TurnedClock()
    health = Health(db.connect(url), clock)
    assert health.reason() == ""
    with db.transaction(health._engine, write=True) as connection:
        connection.exec_driver_sql("ALTER TABLE attempts RENAME TO gone")
    assert health.reason() == ""  # an answer holds for a while
    clock.now += 3
    assert health.reason() == "the database does not answer"  # its own words, with names, are in the log
    assert [record.levelname for record in caplog.records if "attempts" in record.message] == ["ERROR"]
    clock.now += 3
    assert health.reason() and len(caplog.records) == 1
    health.close()
