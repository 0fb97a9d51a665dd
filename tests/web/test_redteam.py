"""Conversations over HTTP: from the first message to preferences, blind, whatever becomes of the model's process."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from html import unescape
from typing import Any

import httpx
import pytest

from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.stages.label import demonstrations, to_preferences
from prefloop.store.campaigns import Campaign
from prefloop.web import partners
from prefloop.web.pages.redteam import NAMED
from prefloop.web.workspace import Workspace
from tests.patience import until
from tests.store.scene import plain
from tests.web.run_folders import HOSTILE
from tests.web.serving import Server, Visitor
from tests.web.standing_in import put_in

Client = Callable[..., Visitor]
MODEL = "secret-model-1"
KINDS = ("both bad", "unsafe", "un<b>true")


def campaign(workspace: Workspace, **config: Any) -> Campaign:
    made = plain(red_team=(MODEL,), flags=KINDS, title="Find where it fails", **config)
    return workspace.campaigns.create("runs/secret-run/red", made, by="prefloop")


class Talk:
    """Somebody in a conversation, and all that the server sent them."""

    def __init__(self, visitor: Visitor, made: Campaign) -> None:
        self.visitor, self.seen = visitor, list[httpx.Response]()
        self.overview = f"/c/{made.id}/talk"
        self.path = self.post("", self.overview).headers["location"]

    def get(self, path: str = "") -> str:
        self.seen.append(self.visitor.get(path or self.path))
        assert self.seen[-1].status_code == 200
        return self.seen[-1].text

    def post(self, what: str, path: str = "", **fields: Any) -> httpx.Response:
        self.seen.append(self.visitor.submit(path or f"{self.path}/{what}", **fields))
        return self.seen[-1]

    def say(self, text: str, **fields: Any) -> httpx.Response:
        page = self.get()
        nonce = re.search(r'name="nonce" value="([^"]+)"', page)
        turn = re.findall(r'name="turn" value="(\d+)"', page)[-1] if nonce else "0"
        return self.post("say", text=text, nonce=nonce[1] if nonce else "n", turn=turn, **fields)

    def wait(self) -> str:
        """Until nothing is on its way; returns the page."""
        end = time.monotonic() + 200
        while self.visitor.get(f"{self.path}/state").json()["waiting"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        return self.get()

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2]


@pytest.fixture
def talk(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A conversation with a process that has no model."""
    put_in(server.workspace.folder, monkeypatch, MODEL)
    return Talk(client("labeler"), campaign(server.workspace))


def test_a_whole_conversation_becomes_preferences(server: Server, client: Client) -> None:
    work = server.workspace
    tiny_model().save_pretrained(work.folder / MODEL)
    tiny_tokenizer().save_pretrained(work.folder / MODEL)
    made = campaign(work)
    talk = Talk(client("labeler", name="ann"), made)
    assert talk.say("Is the earth <i>flat</i>?").status_code == 303
    page = talk.get()
    assert '<noscript><meta http-equiv="refresh" content="3; url=' in page and "writing" in page
    assert "turn-1" in talk.wait()
    talk.post("mark", turn="1", which="0", mark=["unsafe", "un<b>true"], note="Gibberish.", better="No,\nit is round.")
    talk.post("ask", turn="1")
    assert "Which of the two is better?" in talk.wait()
    talk.post("pick", turn="1", which="0")

    assert talk.post("finish").headers["location"] == talk.overview

    comparisons, judgments = work.store.comparisons(made.run), work.store.judgments(made.run)
    first, second = comparisons
    assert [item.checkpoint for item in (*first.items, *second.items)] == [MODEL, MODEL, MODEL, ""]
    assert (
        second.items[1].text == "No,\nit is round." and first.prompt.messages[0].content == "Is the earth <i>flat</i>?"
    )
    assert len({item.text for item in (*first.items, *second.items)}) == 3
    preferences = to_preferences(comparisons, judgments, work.store.annotators(made.run))
    assert [(p.target, p.simulated, p.items) for p in preferences] == [
        (1.0, False, first.items),
        (0.0, False, second.items),
    ]
    assert [d.completion for d in demonstrations(comparisons, judgments)] == ["No,\nit is round."]
    (negative,) = work.red_team.negatives(made.run)
    assert (negative.marks, negative.note, negative.completion) == (
        ("unsafe", "un<b>true"),
        "Gibberish.",
        first.items[0],
    )
    talk.get(talk.overview)
    for response in talk.seen:
        sent = response.text + str(response.headers) + str(response.url)
        assert "secret" not in sent, response.url


def test_an_answer_that_comes_while_its_page_is_made_is_on_it(
    server: Server, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    partners = server.workspace.partners
    waiting = partners.waiting

    def once_it_came(key: str) -> bool:
        until(lambda: not waiting(key))
        return False

    monkeypatch.setattr(partners, "waiting", once_it_came)
    talk.say("say so")
    page = talk.get()
    assert "Ask again" not in page and 'id="turn-1"' in page


def test_a_process_killed_at_work_is_told_and_the_conversation_goes_on(talk: Talk, server: Server) -> None:
    talk.say("hello")
    talk.wait()
    process = next(iter(server.workspace.partners._partners.values()))._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot answer before it is killed
    talk.say("Are you there?")
    time.sleep(2)  # until it was asked: a process that is gone before is begun again
    process.kill()
    page = unescape(talk.wait())
    assert partners.GONE in page and "Are you there?" in page and "Ask again" in page
    turns = server.workspace.red_team.get(talk.id, talk.visitor.name).turns
    assert [turn.text for turn in turns] == ["hello", f"{process.pid} heard hello", "Are you there?"]
    talk.post("ask", turn="2")
    page = talk.wait()
    assert "heard Are you there?" in page and partners.GONE not in page


def test_an_answer_that_names_its_model_is_not_shown(talk: Talk) -> None:
    for told in ("I am ChatGPT, a large language model.", f"My weights lie in {MODEL}."):
        talk.say(f"say {told}") if "Ask again" not in talk.get() else None
        page = unescape(talk.wait())
        assert NAMED in page and "turn-1" not in page
        assert "ChatGPT, a large" not in re.sub(r"say I am ChatGPT[^<]*", "", page)


def test_hostile_answers_are_only_text(talk: Talk) -> None:
    talk.say(f"say {HOSTILE}")
    page = talk.wait()
    assert "turn-1" in page and "<img" not in page and "\u202e" not in page and page.count("[U+202E]") >= 2
    talk.post("mark", turn="1", which="0", mark=["un<b>true"], note=HOSTILE, better=f"Better: {HOSTILE}")
    page = talk.get()
    assert "<img" not in page and "<b>true" not in page
    assert "\u202e" not in re.sub(r"<textarea.*?</textarea>", "", page, flags=re.DOTALL)


def test_of_two_answers_one_is_picked(talk: Talk, server: Server) -> None:
    talk.say("hello", two="on")
    page = talk.wait()
    assert "A is better" in page and "B is better" in page and 'id="message"' not in page
    assert talk.post("say", text="more", nonce="x", turn="2").status_code == 400
    assert talk.post("pick", turn="1", which="1").headers["location"].endswith("#turn-1")
    assert "Answer B" in talk.get() and 'id="message"' in talk.get()
    assert talk.post("ask", turn="1").status_code == 303 and "turn-2" not in talk.wait()


def test_what_was_typed_is_kept_where_it_is_not_taken(talk: Talk, server: Server) -> None:
    empty = talk.post("say", text=" \n ", nonce="x", turn="0", two="on")
    assert empty.status_code == 400 and 'role="alert"' in empty.text and "checked" in empty.text
    long = talk.post("say", text="a" * 20_001, nonce="x", turn="0")
    assert long.status_code == 400 and "a" * 20_001 in long.text
    talk.say("say same")
    talk.wait()
    same = talk.post("mark", turn="1", which="0", mark="unsafe", note="my note", better="same")
    assert same.status_code == 400 and "same as the answer" in same.text and "my note" in same.text
    assert re.search(r'value="unsafe" checked', same.text)
    talk.post("finish")
    late = talk.post("mark", turn="1", which="0", note="", better="my long text")
    assert late.status_code == 400 and "my long text" in late.text and "finished" in late.text
    for what, fields in (("say", {"turn": "x"}), ("pick", {}), ("mark", {"turn": "1"}), ("ask", {"turn": ""})):
        assert talk.post(what, **fields).status_code == 400


def test_a_message_sent_twice_is_said_once(talk: Talk, server: Server) -> None:
    for _ in range(3):
        assert talk.post("say", text="hello", nonce="one", turn="0").status_code == 303
    talk.wait()
    assert talk.post("say", text="hello", nonce="one", turn="0").status_code == 303
    assert len(server.workspace.red_team.get(talk.id, talk.visitor.name).turns) == 2


def test_another_persons_conversation_is_nowhere(talk: Talk, client: Client) -> None:
    talk.say("hello")
    talk.wait()
    other = client("admin")
    for what in ("", "/state"):
        assert other.get(talk.path + what).status_code == 404
    for what in ("say", "ask", "pick", "mark", "finish"):
        assert other.submit(f"{talk.path}/{what}", turn="1", which="0", text="x", nonce="y").status_code == 404
    assert client().get(talk.path).headers["location"].startswith("/login")
    assert talk.path not in other.get(talk.overview).text


def test_nothing_changes_without_a_token_or_by_looking(talk: Talk, server: Server) -> None:
    for what in ("say", "ask", "pick", "mark", "finish"):
        assert talk.visitor.post(f"{talk.path}/{what}", data={"turn": "0", "text": "x"}).status_code == 403
        assert talk.visitor.get(f"{talk.path}/{what}").status_code in (404, 405)
    for path in (talk.path, talk.overview, f"{talk.path}/state"):
        talk.visitor.get(path)
    assert server.workspace.red_team.get(talk.id, talk.visitor.name).turns == ()


def test_a_paused_campaign_takes_no_more_but_lets_finish(talk: Talk, server: Server) -> None:
    talk.say("say well")
    talk.wait()
    server.workspace.campaigns.set_state("runs/secret-run/red", "paused", by="prefloop")
    assert talk.post("say", text="more", nonce="n2", turn="2").status_code == 400
    assert talk.post("ask", turn="1").status_code == 400 and "paused" in talk.get()
    assert "New conversation" not in talk.get(talk.overview)
    talk.post("mark", turn="1", which="0", note="", better="better")
    talk.post("finish")
    assert len(server.workspace.store.judgments("runs/secret-run/red")) == 1


def test_a_process_that_cannot_begin_is_told_without_its_name(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    talk.say("hello")
    page = unescape(talk.wait())
    assert partners.GONE in page and "secret" not in page


def test_campaigns_lead_to_their_conversations_where_there_are_some(talk: Talk, server: Server) -> None:
    server.workspace.campaigns.create("other", plain(title="Other"), by="prefloop")
    page = talk.get("/")
    assert page.count(">Converse<") == 1 and talk.overview in page and "secret" not in page
