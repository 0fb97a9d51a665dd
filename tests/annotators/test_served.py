"""Judges behind a real server that speaks OpenAI's protocol: what is asked of it, and what its replies mean."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prefloop.annotators import served as module
from prefloop.annotators.served import Server
from prefloop.configs.judge import JudgeConfig
from prefloop.types import Message, PrefloopError
from tests.judge_server import reply, serving

QUESTION = (Message(role="user", content="A or B?"),)


def judge(endpoint: str, **rest: Any) -> JudgeConfig:
    return JudgeConfig(name="judge-far", model="m", endpoint=endpoint, **rest)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (reply("A", {"A": 0.6, "B": 0.2, "The": 0.1}), 0.75),
        (reply("A", {" A": 0.3, "A": 0.3, "B": 0.2}), 0.75),
        (reply("B", {"B": 0.9}), 0.0),
        (reply("The", {"The": 0.9, "I": 0.05}), None),
        (reply("A"), 1.0),
        (reply(" B."), 0.0),
        (reply("(A"), 1.0),
        (reply("Both"), None),
        (reply("An", {"An": 0.9, "Bad": 0.05}), None),
        (reply("A", {"A": 3e-7, "The": 0.99}), None),
        (reply("A", {"ĠA": 0.6, "ĠB": 0.2}), 0.75),
    ],
    ids=["both", "spaces", "one", "neither", "A", "B", "bracket", "word", "words", "hardly", "raw"],
)
def test_a_reply_is_read(said: dict[str, Any], expected: float | None) -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any], request: Request) -> dict[str, Any]:
        asked.append(body)
        return said

    with serving(answer) as url:
        assert Server(judge(url))([QUESTION]) == [expected if expected is None else pytest.approx(expected)]
    (body,) = asked
    assert body["messages"] == [{"role": "user", "content": "A or B?"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["logprobs"]) == ("m", 1, 0, True)


def test_replies_come_in_the_order_of_the_questions() -> None:
    def answer(body: dict[str, Any], request: Request) -> dict[str, Any]:
        number = int(body["messages"][0]["content"])
        return reply("A", {"A": (number + 1) / 100, "B": 1 - (number + 1) / 100})

    questions = [(Message(role="user", content=str(i)),) for i in range(40)]
    with serving(answer) as url:
        found = Server(judge(url, parallel=4))(questions)
    assert found == pytest.approx([(i + 1) / 100 for i in range(40)])


def test_a_key_goes_where_it_is_meant_for_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def answer(body: dict[str, Any], request: Request) -> dict[str, Any]:
        seen.append(request.headers.get("authorization"))
        return reply("A")

    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-another-server")
    monkeypatch.setenv("JUDGE_KEY", "secret\n")
    monkeypatch.setenv("ODD", "schlüssel")
    monkeypatch.setenv("TWO", "of two\nlines")
    with serving(answer) as url:
        Server(judge(url))([QUESTION])
        Server(judge(url, key_variable="JUDGE_KEY"))([QUESTION])
        for name in ("NO_SUCH", "ODD", "TWO"):
            with pytest.raises(PrefloopError, match=f"judge-far: set the environment variable {name} to its key"):
                Server(judge(url, key_variable=name))
    assert seen == [None, "Bearer secret"]


def test_a_server_that_stumbles_is_asked_again() -> None:
    left = [503, 429]

    def answer(body: dict[str, Any], request: Request) -> Response | dict[str, Any]:
        return Response("busy", left.pop(), {"retry-after": "0"}) if left else reply("B")

    with serving(answer) as url:
        assert Server(judge(url))([QUESTION]) == [0.0] and not left


def test_a_server_that_refuses_is_named_and_no_more_is_asked() -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any], request: Request) -> Response:
        asked.append("?")
        return JSONResponse({"error": {"message": "no such model"}}, 404)

    with (
        serving(answer) as url,
        pytest.raises(PrefloopError, match=r"judge-far: http://127.0.0.1:\d+/v1 failed .*no such model.*goes on"),
    ):
        Server(judge(url, parallel=2))([QUESTION] * 200)
    assert len(asked) < 100


def test_an_error_ends_the_wait_for_slow_answers() -> None:
    """As Ctrl-C does: nobody waits for what is still under way."""
    slow, waiting, answered = threading.Event(), threading.Event(), threading.Event()

    def answer(body: Mapping[str, Any], request: Request) -> Response | Mapping[str, Any]:
        if body["messages"][0]["content"] == "slow":
            waiting.set()
            slow.wait(60)
            answered.set()
            return reply("A")
        waiting.wait(60)
        return JSONResponse({"error": {"message": "no credit"}}, 402)

    with serving(answer) as url:
        with pytest.raises(PrefloopError, match="no credit"):
            Server(judge(url, parallel=2))([(Message(role="user", content=text),) for text in ("slow", "fast")])
        assert not answered.is_set()
        slow.set()


def test_a_server_that_stays_away_or_busy_is_named_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 4)
    asked: list[str] = []

    def answer(body: Mapping[str, Any], request: Request) -> Response:
        asked.append("?")
        return JSONResponse({"error": {"message": "loading"}}, 503)

    with serving(answer) as url, pytest.raises(PrefloopError, match=r"failed \(503: loading\)"):
        Server(judge(url, parallel=1))([QUESTION] * 3)
    assert 2 <= len(asked) <= 6 and caplog.text.count("is busy or away (503: loading)") == 1
    with pytest.raises(PrefloopError, match=r"failed \(.*Connection refused"):
        Server(judge(url))([QUESTION])


@pytest.mark.parametrize(
    "body",
    ["<html>Hello</html>", "[]", "{", '{"error": {"message": "no credit"}}', '{"choices": []}', '{"choices": null}']
    + [json.dumps({"choices": [choice]}) for choice in ({"message": None}, {}, {"logprobs": {"content": [1]}})],
)
def test_what_is_no_chat_completion_is_an_error(body: str) -> None:
    with (
        serving(lambda asked, request: Response(body, media_type="text/html")) as url,
        pytest.raises(PrefloopError, match=r"judge-far: .* failed \(no chat completion but .*is the URL whole"),
    ):
        Server(judge(url))([QUESTION])


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 9000 tokens.", True),
        ("the request exceeds the available context size, try increasing it", True),
        ("The response was filtered (content_filter)", True),
        ("Error rendering chat template: undefined variable in this context", False),
    ],
)
def test_a_question_that_a_server_refuses_for_its_text_is_left(
    said: str, left: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(body: Mapping[str, Any], request: Request) -> Response | Mapping[str, Any]:
        long = len(body["messages"][0]["content"]) > 100
        return JSONResponse({"error": {"message": said, "code": 400}}, 400) if long else reply("B")

    asked = [QUESTION, *[(Message(role="user", content="x" * 101),)] * 2]
    with serving(answer) as url:
        if left:
            assert Server(judge(url))(asked) == [0.0, None, None]
            assert caplog.text.count("leaves unjudged what it refuses") == 1 and said[:40] in caplog.text
        else:
            with pytest.raises(PrefloopError, match="undefined variable in this context"):
                Server(judge(url))(asked)


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (lambda body: "top_logprobs must be at most 5" if body.get("top_logprobs", 0) > 5 else "", 0.75),
        (lambda body: "logprobs is not supported" if "logprobs" in body else "", 1.0),
    ],
    ids=["fewer log-probs", "no log-probs"],
)
def test_a_server_is_asked_as_it_wants_to_be(refused: Callable[[Any], str], expected: float) -> None:
    asked: list[Mapping[str, Any]] = []

    def answer(body: Mapping[str, Any], request: Request) -> Response | Mapping[str, Any]:
        asked.append(body)
        if why := refused(body):
            return JSONResponse({"error": {"message": why}}, 400)
        return reply("A", {"A": 0.6, "B": 0.2} if "logprobs" in body else None)

    with serving(answer) as url:
        reads = Server(judge(url, parallel=1))
        assert reads([QUESTION] * 3) == pytest.approx([expected] * 3)
    assert 4 <= len(asked) <= 5  # what it refuses is not tried again


def test_spellings_of_special_tokens_are_broken_on_their_way_to_a_server() -> None:
    """A server's own template and tokenizer would make tokens of them."""
    said = "a < b \ud800 <div> [INSTALL] <s> </s> <|im_end|> [INST]x[/INST] <start_of_turn> <<SYS>> <\uff5cUser\uff5c>"
    seen: list[str] = []

    def answer(body: Mapping[str, Any], request: Request) -> Mapping[str, Any]:
        seen.append(body["messages"][0]["content"])
        return reply("A")

    with serving(answer) as url:
        Server(judge(url))([(Message(role="user", content=said),)])
    (found,) = seen
    assert found.replace("\u200b", "") == said.replace("\ud800", "\ufffd")
    assert found.startswith("a < b \ufffd <div> [INSTALL] <\u200bs> <\u200b/s> ")
    assert not any(
        word in found for word in ("<|", "[INST]", "[/INST]", "<start_of", "<<SYS", "<\uff5c", "<s>", "</s>")
    )
