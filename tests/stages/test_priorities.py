"""Reward models tell a campaign what to ask first: on SQLite, with tiny models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefloop import cli
from prefloop.configs.shared import EngineConfig
from prefloop.data.jsonl import text_completion
from prefloop.models.checkpoint import save_checkpoint
from prefloop.models.heads import reward_head
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.ops.acquisition import near_miss, preference_variance
from prefloop.rewards.learned import LearnedReward
from prefloop.stages.priorities import prioritise
from prefloop.store.campaigns import Item
from prefloop.types import Checkpoint, Comparison, Message, PrefloopError, Prompt
from tests.store.scene import RUN, Scene, plain, scene

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=400)
DATABASE = "sqlite:///labels.db"


def comparison(number: int, size: int = 2) -> Comparison:
    prompt = Prompt(id=f"p{number % 7}", messages=(Message(role="user", content=f"Question {number % 7}?"),))
    texts = [f"{number * k} {'ab' * k}" for k in range(1, size + 1)]
    return Comparison(id=f"c{number}", prompt=prompt, items=tuple(text_completion(prompt, text) for text in texts))


MADE = [*(comparison(i) for i in range(70)), comparison(70, size=3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two reward runs whose heads, and scales, differ."""
    paths = [tmp_path_factory.mktemp("reward") for _ in range(2)]
    for seed, path in enumerate(paths):
        details = {"pooling": "last", "gain": 0.3 + seed, "bias": 1.0}
        record = Checkpoint(path="", kind="reward", step=0, parent="tiny", config_hash="", details=details)
        parts = {"model": tiny_model(width=16), "tokenizer": tiny_tokenizer(), "head": reward_head(16, seed)}
        save_checkpoint(path / "checkpoint", record=record, **parts)
    return [str(path) for path in paths]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A campaign with a gold item, one that is held back and one with its label."""
    monkeypatch.chdir(tmp_path)
    special: dict[str, dict[str, Any]] = {"c3": {"gold": {"ranking": [0, 1], "note": ""}}, "c4": {"held": "asked to"}}
    first = {c.id: special.get(c.id, {"priority": 1.0 if c.id == "c5" else -7.0}) for c in MADE}
    made = scene(DATABASE, plain(), MADE, [Item(comparison_id=name, **rest) for name, rest in first.items()])
    task, _ = made.label("ada") or (None, None)
    assert task is not None and task.comparison.id == "c5"
    return made


@pytest.mark.parametrize(("by", "of"), [("disagreement", preference_variance), ("near-miss", near_miss)])
def test_what_waits_is_asked_by_what_the_members_make_of_it(here: Scene, folders: list[str], by: str, of: Any) -> None:
    found = prioritise(DATABASE, RUN, f"worst:{','.join(folders)}", by, ENGINE)
    members = [LearnedReward(folder, ENGINE) for folder in folders]
    expected = {}
    for c in MADE:
        raw = [[s.parts["raw"] for s in member([c.prompt] * len(c.items), c.items)] for member in members]
        leads = [[own[i] - own[j] for own in raw] for i, j in itertools.combinations(range(len(c.items)), 2)]
        expected[c.id] = sum(float(of([[x] for x in lead])[0]) for lead in leads) / len(leads)
    untouched = {"c3": 0.0, "c4": 0.0, "c5": 1.0}
    for name, value in (expected | untouched).items():
        assert here.item(name)["priority"] == pytest.approx(value, abs=1e-6), name
    asked = sorted((value for name, value in expected.items() if name not in untouched), reverse=True)
    assert found == {
        "campaign": RUN,
        "reward": f"worst:{','.join(folders)}",
        "by": by,
        "prioritised": 68,
        "mean": pytest.approx(sum(asked) / 68),
        "highest": pytest.approx(asked[0], abs=1e-6),
        "uniform_share": 0.2,
    }


def test_heads_on_one_trunk_disagree_too(here: Scene, folders: list[str], tmp_path: Path) -> None:
    details = {"pooling": "last", "gain": 0.3, "bias": 1.0, "members": [(1.3, 1.0)]}
    record = Checkpoint(path="", kind="reward", step=0, parent="tiny", config_hash="", details=details)
    parts: dict[str, Any] = {"model": tiny_model(width=16), "tokenizer": tiny_tokenizer(), "head": reward_head(16, 0)}
    save_checkpoint(tmp_path / "rm" / "checkpoint", record=record, members=[reward_head(16, 1)], **parts)
    found = []
    for name in (f"mean:{','.join(folders)}", "rm", "mean:rm"):
        prioritise(DATABASE, RUN, name, "disagreement", ENGINE)
        found.append([here.item(c.id)["priority"] for c in MADE])
    assert found[1] == pytest.approx(found[0], abs=1e-6) and found[2] == found[1]


def test_the_queue_follows_and_uniform_picks_go_on(here: Scene, folders: list[str]) -> None:
    prioritise(DATABASE, RUN, f"mean:{','.join(folders)}", "disagreement", ENGINE)
    place = {
        c.id: rank for rank, c in enumerate(sorted(MADE, key=lambda c: (-here.item(c.id)["priority"], c.id)))
    }  # of 71; c5 is done and stays high
    taken = [here.label("bob") for _ in range(20)]
    ranks: dict[bool, list[int]] = {True: [], False: []}
    for found in taken:
        assert found is not None
        task, _ = found
        row = next(row for row in here.rows("tasks") if row["id"] == task.id)
        ranks[bool(row["uniform"])].append(place[task.comparison.id])
    assert (len(ranks[True]), len(ranks[False])) == (4, 16)
    assert max(ranks[False]) <= 21 < max(ranks[True])


def test_one_model_has_near_misses_but_nobody_to_disagree_with(here: Scene, folders: list[str]) -> None:
    assert prioritise(DATABASE, RUN, folders[0], "near-miss", ENGINE)["prioritised"] == 68
    with pytest.raises(PrefloopError, match="nobody to disagree with"):
        prioritise(DATABASE, RUN, folders[0], "disagreement", ENGINE)


@pytest.mark.parametrize(
    ("run", "reward", "by", "said"),
    [
        ("runs/other/label", "{a}", "near-miss", "no such campaign"),
        (RUN, "rubric", "near-miss", "rubric is no reward model"),
        (RUN, "mean:{a},nowhere", "disagreement", "'nowhere' is no folder"),
        (RUN, "{a}", "hope", "'hope' is no way to choose"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_changes(
    here: Scene, folders: list[str], run: str, reward: str, by: str, said: str
) -> None:
    with pytest.raises(PrefloopError, match=said):
        prioritise(DATABASE, run, reward.format(a=folders[0]), by, ENGINE)
    assert {row["priority"] for row in here.rows("comparisons")} == {-7.0, 0.0, 1.0}


def test_the_command_says_what_it_did(here: Scene, folders: list[str]) -> None:
    words = ["labels", "prioritise", RUN, "--database", DATABASE, "--json", "--reward"]
    done = CliRunner().invoke(cli.app, [*words, f"mean:{','.join(folders)}"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["prioritised"] == 68
    assert here.item("c0")["priority"] not in (-7.0, 0.0)
    lone = CliRunner().invoke(cli.app, [*words, folders[0]])
    assert lone.exit_code == 1 and "nobody to disagree" in json.loads(lone.stdout)["error"]
