"""The label stage with people: it waits, can be killed, and makes of their labels what they said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.faults.forking import Fork, Forks
from prefloop.configs.campaign import CampaignConfig
from prefloop.configs.collect import LabelConfig
from prefloop.data.jsonl import read_demonstrations, read_preferences, text_completion, write_jsonl
from prefloop.stages import label, people
from prefloop.store import db
from prefloop.store.answers import Answer, Answers
from prefloop.store.assignment import Desk, Task, seen_until
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.labels import Store, open_store
from prefloop.store.standing import standing
from prefloop.types import CANT_JUDGE, Comparison, Judgment, Message, PrefloopError, Prompt
from tests.patience import until

RUN = "r/label"
PLAIN = CampaignConfig(shared_share=0.0, gold_share=0.0, repeat_share=0.0, calibration=0)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(people, "POLL_SECONDS", 0.02)


def asked(index: int) -> Prompt:
    message = Message(role="user", content=f"Name {index} things.")
    return Prompt(id=f"train-{index}", messages=(message,), slice="everyday", split="train")


def write_answers(folder: Path, prompts: int) -> None:
    """Two answers to each prompt, one of them short."""
    rows = [
        {"prompt": prompt, "completion": text_completion(prompt, text)}
        for prompt in map(asked, range(prompts))
        for text in (f"A thing {prompt.id}.", f"Another thing, and one more {prompt.id}.")
    ]
    write_jsonl(folder / "answers.jsonl", rows)


def config(**rest: Any) -> LabelConfig:
    settings: dict[str, Any] = {"annotator": "people", "completions": "answers.jsonl", "campaign": PLAIN, **rest}
    return LabelConfig(out=RUN, **settings)


class Office:
    """People who label in a workspace, as the pages have them do it."""

    def __init__(self, folder: Path) -> None:
        self.engine = db.connect(f"sqlite:///{folder}/prefloop.db")
        clock = Clock(seen_until(self.engine))
        self.store, self.campaigns = Store(self.engine), Campaigns(self.engine, clock)
        self.desk, self.answers = Desk(self.engine, clock), Answers(self.engine, clock)
        if "Ada" not in self.store.annotators(RUN):
            with_nothing = Comparison(id="-", prompt=asked(99), items=(text_completion(asked(99), "a"),) * 2)
            self.store.add_comparisons("-", [with_nothing])
            hello = [Judgment(comparison_id="-", annotator=name, ranking=(0, 0)) for name in ("Ada", "Bob")]
            self.store.add_judgments("-", hello, simulated=False)

    def label(self, who: str, count: int, say: Callable[[Task], Answer] | None = None) -> int:
        """Answer up to `count` tasks; returns how many there were."""
        for done in range(count):
            task = self.desk.next_task(self.campaigns.by_run(RUN), who)
            if task is None:
                return done
            self.answers.submit(task.id, who, (say or prefers_short)(task), nonce=f"{task.id}-{who}")
        return count


def prefers_short(task: Task) -> Answer:
    """The shorter answer is clearly better, and a still shorter one better yet."""
    items = [task.comparison.items[item] for item in task.shown]
    right = len(items[1].text) < len(items[0].text)
    return Answer(axes={"overall": 3 if right else -3}, edit=f"Thing {task.comparison.prompt.id}.")


@contextmanager
def waiting(**rest: Any) -> Iterator[dict[str, Mapping[str, Any]]]:
    """The stage in a thread; what it returned stands in the dict once the block has ended."""
    found: dict[str, Mapping[str, Any]] = {}

    def work() -> None:
        found["result"] = label.run(config(**rest))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: has_campaign(Path()))
        yield found
    finally:
        thread.join(timeout=120)
        assert not thread.is_alive()


def has_campaign(folder: Path) -> bool:
    if not (folder / "prefloop.db").exists():
        return False
    engine = db.connect(f"sqlite:///{folder}/prefloop.db")
    try:
        return bool(Campaigns(engine, Clock()).all()) and standing(engine, RUN).wanted > 0
    finally:
        engine.dispose()


@contextmanager
def stage_process(forks: Forks, folder: Path) -> Iterator[Fork]:
    """The stage in a process of its own, from when it waits on."""
    command = ("tests.stages.label_stage", config().model_dump_json())
    said = folder / "said"
    with said.open("wb") as file, forks.start(*command, folder=folder, stderr=file) as process:
        try:
            until(lambda: "run `prefloop serve` in" in said.read_text())
            yield process
            process.wait(timeout=240)
        finally:
            process.kill()


def made_files(folder: Path) -> list[bytes]:
    return [(folder / RUN / f"{name}.jsonl").read_bytes() for name in ("preferences", "demonstrations")]


def test_killed_and_begun_again_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Forks
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_answers(whole, 6)
    monkeypatch.chdir(whole)
    with waiting():
        Office(whole).label("Ada", 100)
    write_answers(killed, 6)
    for how in (signal.SIGKILL, signal.SIGINT):
        with stage_process(forks, killed) as stage:
            assert Office(killed).label("Ada", 2) == 2
            stage.send_signal(how)
        assert stage.returncode != 0
        assert not (killed / RUN / "preferences.jsonl").exists()
    with stage_process(forks, killed) as stage:
        Office(killed).label("Ada", 100)
    assert stage.returncode == 0
    assert made_files(whole) == made_files(killed)
    preferences = read_preferences(killed / RUN / "preferences.jsonl")
    shorter = [float(len(p.items[0].text) < len(p.items[1].text)) for p in preferences]
    assert [p.target for p in preferences] == shorter and len(shorter) == 6
    assert not any(p.simulated for p in preferences) and {p.margin for p in preferences} == {0.0}
    written = read_demonstrations(killed / RUN / "demonstrations.jsonl")
    assert [d.completion for d in written] == [f"Thing train-{i}." for i in range(6)]


def test_labels_made_at_the_pages_of_a_real_server_are_waited_for(tmp_path: Path, forks: Forks) -> None:
    """`prefloop serve` and the stage, each a process of its own; somebody comes in by the link and labels all."""
    write_answers(tmp_path, 4)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    environment |= {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "prefloop", "serve", "--port", "0"]
    with (
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment) as server,
        stage_process(forks, tmp_path) as stage,
    ):
        try:
            assert server.stdout is not None
            link = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/start/\S+", line)))
            origin = link.partition("/start/")[0]
            with httpx.Client(base_url=origin, headers={"origin": origin}, follow_redirects=True, timeout=120) as ada:
                page = sent(ada, ada.get(link), "/invite", name="ada")
                (place,) = set(re.findall(r'href="(/c/[0-9a-f]+)"', page.text))
                page = sent(ada, page, f"{place}/next")
                while "/t/" in page.url.path:
                    left = page.text.index("A thing") < page.text.index("Another thing")
                    page = sent(ada, page, f"{page.url.path}/submit", **{"axis:overall": "-3" if left else "3"})
            stage.wait(timeout=240)
        finally:
            server.terminate()
    preferences = read_preferences(tmp_path / RUN / "preferences.jsonl")
    assert [p.target for p in preferences] == [float(p.items[0].text.startswith("A thing")) for p in preferences]
    assert len(preferences) == 4 and not any(p.simulated for p in preferences)


def sent(who: httpx.Client, page: httpx.Response, to: str, **fields: str) -> httpx.Response:
    """What comes after a form of a page, sent with what is hidden in it."""
    own = {name: re.search(f'name="{name}" value="([^"]*)"', page.text) for name in ("csrf", "nonce", "version")}
    answer = who.post(to, data={name: found[1] for name, found in own.items() if found} | fields)
    assert answer.status_code == 200, answer.text
    return answer


def test_it_ends_when_every_item_has_its_labels_and_closes_the_campaign(tmp_path: Path) -> None:
    write_answers(tmp_path, 3)
    with waiting(campaign=PLAIN.model_copy(update={"overlap": 2}), margins=True) as found:
        office = Office(tmp_path)
        assert office.label("Ada", 100) == 3
        assert standing(office.engine, RUN).state == "open"
        other = {0: 4, 1: -2, 2: 0}  # strength for the longer answer, by prompt

        def say(task: Task) -> Answer:
            long = [len(task.comparison.items[item].text) for item in task.shown]
            value = other[int(task.comparison.prompt.id[-1])]
            return Answer(axes={"overall": value if long[1] > long[0] else -value})

        assert office.label("Bob", 100, say) == 3
    result = found["result"]
    assert (result["comparisons"], result["judgments"], result["simulated"]) == (3, 6, False)
    assert result["annotators"] == {"Ada": {"n": 3}, "Bob": {"n": 3}} and result["demonstrations"] == 3
    assert office.campaigns.by_run(RUN).state == "closed"
    made = {p.prompt.id: p for p in read_preferences(f"{RUN}/preferences.jsonl")}
    firsts = {id_: len(p.items[0].text) < len(p.items[1].text) for id_, p in made.items()}
    short = {id_: p.target if firsts[id_] else 1 - (p.target or 0) for id_, p in made.items()}
    assert short == {"train-0": 0.5, "train-1": 1.0, "train-2": 0.75}
    assert {id_: p.margin for id_, p in made.items()} == pytest.approx(
        {"train-0": 0, "train-1": (2 / 3 + 1 / 3) / 2, "train-2": (2 / 3 + 0) / 2}
    )


def test_what_could_not_be_judged_is_left_out_and_another_is_asked(tmp_path: Path) -> None:
    write_answers(tmp_path, 2)
    with waiting() as found:
        office = Office(tmp_path)
        office.label("Ada", 2, lambda task: Answer(flags=[CANT_JUDGE]))
        assert "result" not in found
        office.label("Bob", 1)
        office.campaigns.set_state(RUN, "closed", by="Ada")
    assert (found["result"]["comparisons"], found["result"]["judgments"]) == (2, 1)
    assert len(read_preferences(f"{RUN}/preferences.jsonl")) == 1


def test_a_campaign_closed_without_a_label_is_waited_for(tmp_path: Path) -> None:
    write_answers(tmp_path, 2)
    with waiting() as found:
        office = Office(tmp_path)
        office.campaigns.set_state(RUN, "closed", by="Ada")
        time.sleep(0.2)
        assert "result" not in found
        office.campaigns.set_state(RUN, "open", by="Ada")
        office.label("Ada", 2)
    assert found["result"]["judgments"] == 2


def test_held_items_are_not_waited_for(tmp_path: Path) -> None:
    write_answers(tmp_path, 3)
    with waiting() as found:
        office = Office(tmp_path)
        office.campaigns.hold(RUN, office.store.comparisons(RUN)[1].id, "names a model", by="Ada")
        assert office.label("Ada", 100) == 2
    assert found["result"]["judgments"] == 2


def test_labels_that_come_after_the_end_are_not_left_out_in_silence(tmp_path: Path) -> None:
    write_answers(tmp_path, 3)
    with waiting():
        office = Office(tmp_path)
        late = office.desk.next_task(office.campaigns.by_run(RUN), "Bob")
        office.label("Ada", 1)
        office.campaigns.set_state(RUN, "closed", by="Ada")
    label.run(config())
    assert late is not None
    office.answers.submit(late.id, "Bob", prefers_short(late), nonce="late")
    with pytest.raises(PrefloopError, match="1 judgments more than this stage used; remove this folder"):
        label.run(config())


def test_settings_bind_from_the_first_question(tmp_path: Path) -> None:
    write_answers(tmp_path, 3)
    with waiting():
        Office(tmp_path).label("Ada", 3)
    Path(RUN, "result.json").unlink()
    Path(RUN, "preferences.jsonl").unlink()
    with pytest.raises(PrefloopError, match="other settings: seed is 0 there and 7 here"):
        label.run(config(seed=7))


def test_simulated_judgments_are_not_taken_for_peoples(tmp_path: Path) -> None:
    write_answers(tmp_path, 2)
    with open_store() as store:
        prompt = asked(0)
        comparison = Comparison(id="c", prompt=prompt, items=tuple(text_completion(prompt, text) for text in "ab"))
        store.add_comparisons(RUN, [comparison])
        made = Judgment(comparison_id="c", annotator="simulated-1", ranking=(0, 1))
        store.add_judgments(RUN, [made], simulated=True)
    with pytest.raises(PrefloopError, match="simulated people under this name"):
        label.run(config())


def test_more_than_two_answers_become_rankings() -> None:
    prompt = asked(0)
    items = tuple(text_completion(prompt, text) for text in "abc")
    comparison = Comparison(id="c", prompt=prompt, items=items)
    votes = [
        Judgment(comparison_id="c", annotator="Bob", ranking=(2, 1, 0)),
        Judgment(comparison_id="c", annotator="Ada", ranking=(0, 1, 1)),
    ]
    made = label.to_preferences([comparison], votes, {"Ada": False, "Bob": False})
    assert [(p.ranking, p.target, p.weight) for p in made] == [((0, 1, 1), None, 1 / 6), ((2, 1, 0), None, 1 / 6)]
