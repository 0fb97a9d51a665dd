"""Judges behind a real server that speaks OpenAI's protocol: what is asked of it, and what its replies mean."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prefloop.annotators.served import served
from prefloop.configs.judge import JudgeConfig
from prefloop.types import Message, PrefloopError
from tests.serving import reply, serving

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
        (reply("") | {"choices": []}, None),
    ],
    ids=["log-probs", "spaces", "one letter", "neither", "text A", "text B", "bracket", "a word", "words", "nothing"],
)
def test_a_reply_is_read(said: dict[str, Any], expected: float | None) -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any], request: Request) -> dict[str, Any]:
        asked.append(body)
        return said

    with serving(answer) as url:
        assert served(judge(url))([QUESTION]) == [expected if expected is None else pytest.approx(expected)]
    (body,) = asked
    assert body["messages"] == [{"role": "user", "content": "A or B?"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["logprobs"]) == ("m", 1, 0, True)


def test_replies_come_in_the_order_of_the_questions() -> None:
    def answer(body: dict[str, Any], request: Request) -> dict[str, Any]:
        number = int(body["messages"][0]["content"])
        return reply("A", {"A": (number + 1) / 100, "B": 1 - (number + 1) / 100})

    questions = [(Message(role="user", content=str(i)),) for i in range(40)]
    with serving(answer) as url:
        found = served(judge(url, parallel=4))(questions)
    assert found == pytest.approx([(i + 1) / 100 for i in range(40)])


def test_a_key_goes_where_it_is_meant_for_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def answer(body: dict[str, Any], request: Request) -> dict[str, Any]:
        seen.append(request.headers.get("authorization"))
        return reply("A")

    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-another-server")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving(answer) as url:
        served(judge(url))([QUESTION])
        served(judge(url, key_variable="JUDGE_KEY"))([QUESTION])
        with pytest.raises(PrefloopError, match="judge-far: set the environment variable NO_SUCH to its key"):
            served(judge(url, key_variable="NO_SUCH"))
    assert seen == ["Bearer none", "Bearer secret"]


def test_a_server_that_stumbles_is_asked_again() -> None:
    left = [503, 429]

    def answer(body: dict[str, Any], request: Request) -> Response | dict[str, Any]:
        return Response("busy", left.pop(), {"retry-after-ms": "10"}) if left else reply("B")

    with serving(answer) as url:
        assert served(judge(url))([QUESTION]) == [0.0] and not left


def test_a_server_that_refuses_is_named_and_no_more_is_asked() -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any], request: Request) -> Response:
        asked.append("?")
        return JSONResponse({"error": {"message": "no such model"}}, 404)

    with (
        serving(answer) as url,
        pytest.raises(PrefloopError, match=r"judge-far: http://127.0.0.1:\d+/v1 failed .*no such model.*goes on"),
    ):
        served(judge(url, parallel=2))([QUESTION] * 200)
    assert len(asked) < 100
