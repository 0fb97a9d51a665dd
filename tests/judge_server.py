"""A real server that speaks OpenAI's protocol, for judges to ask."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Callable[[Mapping[str, Any], Request], Response | Mapping[str, Any]]


def reply(text: str, likely: dict[str, float] | None = None) -> dict[str, Any]:
    """A chat completion that says `text`; `likely`: probabilities of its first token."""
    tokens = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in (likely or {}).items()]
    first = {"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": tokens}
    choice = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [first]} if likely else None,
    }
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server whose replies to chat completions `answer` makes, several at a time; yields its base URL."""

    async def endpoint(request: Request) -> Response:
        found = await run_in_threadpool(answer, await request.json(), request)
        return found if isinstance(found, Response) else JSONResponse(found)

    app = Starlette(routes=[Route("/v1/chat/completions", endpoint, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def quoted(text: str) -> list[str]:
    """What stands between the fences of a judge's question: the conversation and both answers."""
    fence = text.partition("Conversation:\n")[2].partition("\n")[0]
    assert set(fence) == {"="}
    return text.split(f"\n{fence}\n")[1::2]


def by_rule(rule: Callable[[str, str], float]) -> Answer:
    """A judge that takes answer A with the probability that a rule over both answers gives."""

    def answer(body: Mapping[str, Any], request: Request) -> Mapping[str, Any]:
        first = min(max(rule(*quoted(body["messages"][0]["content"])[1:]), 1e-6), 1 - 1e-6)
        return reply("A", {"A": first, "B": 1 - first})

    return answer
