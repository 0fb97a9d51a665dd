"""Faults of the machine, on real processes: checklist (labeling.md, 3.3), lines 26 to 28."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from prefloop.store.labels import open_store

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path += [str(BENCHMARKS / name) for name in ("faults", "labeling")]  # as for scripts that run there
clients, kill_server, power_loss = map(import_module, ("clients", "kill_server", "power_loss"))


@pytest.mark.parametrize("database", ["", "postgres_url"])
def test_line_26_ten_kills_of_a_busy_server_lose_and_double_nothing(
    request: pytest.FixtureRequest, database: str
) -> None:
    """`make soak` does a thousand."""
    found = kill_server.run(10, str(request.getfixturevalue(database)) if database else "", seed=0)
    assert found["holds"], found
    assert found["kills"] == 10 and found["acknowledged"] > 50


def cut(labels: int, synchronous: str) -> dict[str, Any]:
    if shutil.which("strace") is None:
        advice = "strace is not installed: apt-get install strace"
        if os.environ.get("CI") == "true":
            pytest.fail(advice)
        pytest.skip(advice)
    found: dict[str, Any] = power_loss.run(labels, 0.15, synchronous, seed=0)
    return found


def test_line_27_a_power_cut_at_any_write_loses_no_acknowledged_label() -> None:
    found = cut(2, "FULL")
    assert found["holds"] and found["points"] > 200 and found["disks"] > 40, found


def test_line_27_without_syncs_a_power_cut_does_lose_labels() -> None:
    """The control."""
    found = cut(2, "OFF")
    assert not found["holds"] and any("acknowledged" in problem for problem in found["problems"]), found


def test_line_28_on_a_full_disk_the_answer_stays_in_the_page_until_it_can_be_kept(
    browser: Browser, tmp_path: Path
) -> None:
    """Full: no file of the server's may grow any more."""
    tokens = clients.prepare(tmp_path, "", 3, 1, kill_server.CONFIG.model_copy(update={"lease_minutes": 5}))
    with clients.serving(tmp_path, "") as server, browser.new_context(base_url=server.address) as context:
        context.set_extra_http_headers({"authorization": f"Bearer {tokens['labeler 00']}"})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto("/")
        page.get_by_role("link", name="Start").click()
        page.get_by_role("button", name="Start").click()
        page.wait_for_load_state()  # its scripts take keys
        page.locator("#rationale").fill("what I wrote")
        page.keyboard.press("Escape")
        expect(page.locator("#state")).to_have_text("Draft saved")
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        before = page.url
        page.keyboard.press("8")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Not saved yet: the server is in trouble")).to_be_visible()
        expect(page.locator("#rationale")).to_have_value("what I wrote")
        health = httpx.get(f"{server.address}/health")
        assert health.status_code == 503 and "disk" in health.json()["reason"]
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        expect(page).not_to_have_url(before)
    with open_store(f"sqlite:///{tmp_path / 'prefloop.db'}") as store:
        assert [judged.rationale for judged in store.judgments(clients.RUN)] == ["what I wrote"]
        assert store.verify().judgments == 1
