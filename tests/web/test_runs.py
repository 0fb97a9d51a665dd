"""Pages of runs: who may see them, what is on them, and what a page asks for while a run goes on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from typing import Any

import httpx
import pytest

from prefloop.configs.campaign import CampaignConfig
from prefloop.configs.ppo import PPOConfig
from prefloop.run import Run
from tests.web.run_folders import write_run
from tests.web.serving import Server, Visitor

Client = Callable[..., Visitor]


@pytest.fixture
def reviewer(server: Server, client: Client) -> Visitor:
    write_run(server.workspace.folder / "runs" / "first")
    write_run(server.workspace.folder / "runs" / "second try", done=25, finished=False, bent=False)
    return client("reviewer")


def charts(page: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(unescape(data)) for data in re.findall(r'data-chart="([^"]+)"', page.text)]


def test_the_web_app_loads_no_torch() -> None:
    code = (
        "import sys, prefloop.web.app; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_runs_are_not_for_labelers(reviewer: Visitor, client: Client) -> None:
    for path in ("/runs", "/runs/first", "/runs/first/ppo/series"):
        assert reviewer.get(path).status_code == 200
        assert client("labeler").get(path).status_code == 404
        assert client().get(path).headers["location"].startswith("/login")


def test_without_a_run_the_page_says_how_to_begin_one(client: Client) -> None:
    assert "prefloop quickstart" in client("admin").get("/runs").text


def test_runs_are_listed_with_where_they_stand(reviewer: Visitor) -> None:
    page = reviewer.get("/runs").text
    assert 'href="/runs/first"' in page and 'href="/runs/second%20try"' in page
    assert "ppo, step <span >25</span> of 60" in page and ">interrupted<" in page and ">finished<" in page
    assert reviewer.get("/runs/second%20try").status_code == 200


@pytest.mark.parametrize("name", ["none", "%2e%2e", "..%2f..%2fetc", "first%00", "%2fetc%2fpasswd", "a" * 3000])
def test_other_names_are_nowhere(reviewer: Visitor, name: str) -> None:
    for path in (f"/runs/{name}", f"/runs/{name}/ppo/series"):
        found = httpx.get(f"{reviewer.base_url}{path}", cookies=dict(reviewer.cookies))
        assert found.status_code == 404, path
    assert reviewer.get("/runs/first/..%2freward/series").status_code == 404
    assert reviewer.get("/runs/first/nothing/series").status_code == 404


def test_one_chart_has_reward_kl_and_preference_and_what_came_after_the_peak(reviewer: Visitor) -> None:
    page = reviewer.get("/runs/first")
    main, more, reward, sft = charts(page)
    assert [len(panel["series"]) for panel in main["panels"]] == [1, 2, 1] and main["panels"][2]["reference"] == 0.5
    assert [len(line["x"]) for panel in main["panels"] for line in panel["series"]] == [60] * 4
    assert 15 < main["mark"] < 45 and "Over-optimisation" in page.text
    assert [len(chart["panels"]) for chart in (more, reward, sft)] == [3, 2, 1] and more["mark"] is None
    good = reviewer.get("/runs/second%20try")
    assert charts(good)[0]["mark"] is None and "Over-optimisation" not in good.text
    assert "71.4 %" in page.text and "62.0 %" in page.text and "held-out accuracy" in page.text


def test_the_campaign_of_a_run_is_linked(reviewer: Visitor, server: Server) -> None:
    made = server.workspace.campaigns.create("runs/first/label", CampaignConfig(title="Mine"), by="prefloop")
    server.workspace.campaigns.create("runs/first-2/label", CampaignConfig(title="Another's"), by="prefloop")
    page = reviewer.get("/runs/first").text
    assert f'href="/c/{made.id}/manage"' in page and "Another" not in page


def test_answers_before_and_after_stand_side_by_side(reviewer: Visitor) -> None:
    page = reviewer.get("/runs/first?prompt=2").text
    assert "turn yellow (1)" in page and "policy says: water it <em>less</em>" in page and "sft says" in page
    assert "Prompt 2 of 6" in page and 'href="?before=sft&prompt=3#samples"' in page.replace("&amp;", "&")
    assert "base says" in reviewer.get("/runs/first?prompt=2&before=base").text
    for odd, shown in {"0": 1, "-7": 1, "1e9": 1, "x": 1, "99&before=<script>": 6, "9" * 400: 6, "9" * 5000: 1}.items():
        assert f"Prompt {shown} of 6" in reviewer.get(f"/runs/first?prompt={odd}").text, odd
    training = reviewer.get("/runs/second%20try?prompt=2").text
    assert "rollout says" in training and "before says" in training


def test_hostile_answers_are_only_text(reviewer: Visitor) -> None:
    page = reviewer.get("/runs/first?prompt=1").text
    assert (
        "<img" not in page
        and "onerror" in page
        and "\u202e" not in page
        and "javascript:" not in re.sub(r"<code.*?</code>", "", page)
    )


def test_a_page_asks_for_what_came_after_its_last_step(reviewer: Visitor, server: Server) -> None:
    def ask(after: str) -> dict[str, Any]:
        found: dict[str, Any] = reviewer.get(f"/runs/second%20try/ppo/series?after={after}").json()
        return found

    whole, rest = ask("-1"), ask("20")
    assert (whole["state"], whole["stage"], whole["step"]) == ("interrupted", "ppo", 25)
    assert [step for step, _ in rest["series"]["kl/response"]] == [21, 22, 23, 24]
    assert whole["series"]["kl/response"][21:] == rest["series"]["kl/response"]
    assert ask("24")["series"]["kl/response"] == [] and ask("x") == whole
    assert reviewer.get("/runs/second%20try/collect/series").json()["series"] == {}
    path = server.workspace.folder / "runs" / "second try" / "ppo"
    config = PPOConfig(out=str(path), steps=60)
    (path / "config.json").write_text(config.model_dump_json())
    with Run.open(path, config, stage="ppo", parents={}) as run:
        for step in range(25, 2000):
            row = json.dumps({"step": step, "kl/response": step % 7})
            with (path / "metrics.jsonl").open("a") as file:
                file.write(row + "\n")
        run.log(2000, {"kl/response": 9.5})
        found = ask("24")
        assert (found["state"], found["step"]) == ("running", 2001)
        points = found["series"]["kl/response"]
        assert 400 < len(points) <= 500 and points[-1] == [2000, 9.5]


@pytest.mark.parametrize("odd", [{}, {"win_rate": 0.5}, {"win_rate": "much", "accuracy": None}, {"accuracy": [1]}])
def test_a_result_without_its_figures_is_no_hindrance(reviewer: Visitor, server: Server, odd: dict[str, Any]) -> None:
    for stage in ("evaluate", "reward"):
        path = server.workspace.folder / "runs" / "first" / stage / "result.json"
        known = {"seconds": 1.0, "checkpoint": "here"}
        path.write_text(json.dumps(known | odd))
    assert reviewer.get("/runs/first").status_code == 200
    assert reviewer.get("/runs").status_code == 200
