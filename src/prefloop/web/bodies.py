"""What a request brings: read within bounds of size and time, and only in forms that no other site can send."""

from __future__ import annotations

import asyncio
import json
import math

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from prefloop.types import Json

FORM, FILES, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
MAX_FIELDS = 1000
MAX_FILES = 10
SPARE = 8 * 2**20
"""Bytes beyond the limit that are still read, and dropped."""
_DEPTH = 64
_LARGEST = 2**53
_SLOWEST = 16 * 1024  # bytes a second, beyond which a sender may take as long as it needs
_CLOSE = {"connection": "close"}


class Intake:
    """Receives a request's body. Raises 413 beyond `limit` bytes and 408 where they come too slowly.

    What is too much is read to its end all the same, if that is near: a sender that is cut off never hears why."""

    def __init__(self, receive: Receive, limit: int, patience: float) -> None:
        self._receive, self._limit, self._patience = receive, limit, patience
        self._begun, self._bytes = asyncio.get_running_loop().time(), 0

    async def __call__(self) -> Message:
        message = await self._next()
        if self._bytes > self._limit:
            while message.get("more_body", False) and self._bytes <= self._limit + SPARE:
                message = await self._next()
            raise too_large(self._limit)
        return message

    async def _next(self) -> Message:
        until = self._begun + self._patience + self._bytes / _SLOWEST
        try:
            async with asyncio.timeout_at(until):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, "What you sent took too long; try again.", _CLOSE) from error
        self._bytes += len(message.get("body", b""))
        return message


def too_large(limit: int) -> HTTPException:
    """The refusal of more than `limit` bytes."""
    return HTTPException(413, f"That is more than the {limit / 2**20:g} MiB that can be sent here at once.", _CLOSE)


async def read(receive: Receive) -> bytes:
    """A whole body."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "The connection ended before the request did.")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read already, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def media_type(request: Request) -> str:
    """The kind of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def announced(request: Request) -> int:
    """How many bytes a request says that its body has."""
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 2**63


def parse_json(body: bytes) -> Json:
    """A JSON value that every reader reads alike: no name twice, no NaN, no number beyond what a float holds, not deep.

    Raises 400 for any other."""
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_distinct,
            parse_constant=_float,
            parse_float=_float,
            parse_int=_integer,
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"This is no JSON that can be read here: {error}.") from error
    return value


def _check_depth(value: Json) -> None:
    level, deep = [value], 0
    while level:
        deep += 1
        if deep > _DEPTH:
            raise ValueError(f"it is more than {_DEPTH} levels deep")
        inside = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [child for children in inside for child in children]


def _distinct(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands in it twice")
    return made


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number")
    return value


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _LARGEST:
        raise ValueError(f"the number {text[:20]} is too large")
    return int(text)
