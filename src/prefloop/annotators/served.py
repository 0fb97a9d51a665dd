"""Judges behind an OpenAI-compatible server; the one door to httpx."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import httpx

from prefloop.configs.judge import JudgeConfig
from prefloop.data.chat import sound
from prefloop.types import Json, Message, PrefloopError

MOST_LIKELY, FEW = 20, 5  # first tokens whose log-probs are asked for; of a server that refuses so many
LEAST = 1e-3  # that a judge's first token is "A" or "B": with less it says neither
PATIENCE = 120.0  # seconds that a server may take to answer, and to be there again
LONGEST_WAIT, LONGEST_ASKED = 30.0, 60.0  # seconds between two tries; where the server names them
_BUSY = {408, 409, 429, 500, 502, 503, 504}
_LETTER = re.compile(r"[\WĠ]*([AB])\W*")
_SPECIAL = re.compile(r"<(?=[|\uff5c]|/?s>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>|</?SYS>)|\[(?=/?INST\])")
_ABOUT_THE_TEXT = re.compile(
    r"context (?:length|size|window)|too (?:long|large)|max_new_tokens|content_(?:filter|policy)|content management",
    re.IGNORECASE,
)


class Server:
    """A model that a server runs (see `judge.Reads`): from the log-probs of its first token, or of a server that gives
    none from the letter that it wrote. A server tokenizes by itself: spellings of common special tokens are broken by a
    zero-width space, for what they would form there. PrefloopError where the key is missing or the server fails."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config, self.who = config, f"Judge {config.name}: {config.endpoint}"
        key = os.environ.get(config.key_variable, "").strip() if config.key_variable else ""
        if config.key_variable and not (key and key.isascii() and key.isprintable()):
            raise PrefloopError(f"Judge {config.name}: set the environment variable {config.key_variable} to its key.")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.asks: Mapping[str, Json] = {"max_tokens": 1, "logprobs": True, "top_logprobs": MOST_LIKELY}
        self.told: set[str] = set()
        self.tls = httpx.create_ssl_context()
        try:
            httpx.URL(config.endpoint)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise self.failed(f"no address: {error}") from error

    def __call__(self, questions: Sequence[Sequence[Message]]) -> list[float | None]:
        """Answers in the order of questions, `parallel` at a time; the first error, or Ctrl-C, ends the wait at once:
        the threads that still wait for the server are left to end by themselves."""
        found: list[float | None] = [None] * len(questions)
        todo: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, float | BaseException | None]] = SimpleQueue()
        stop = threading.Event()
        for place in range(len(questions)):
            todo.put(place)

        def work() -> None:
            options: dict[str, Any] = {"base_url": self.config.endpoint, "headers": self.headers, "verify": self.tls}
            try:
                with httpx.Client(**options, timeout=PATIENCE) as client:
                    while not stop.is_set():
                        place = todo.get_nowait()
                        done.put((place, self.read(client, questions[place], stop)))
            except Empty:
                pass
            except BaseException as error:
                done.put((0, error))

        try:
            for _ in range(min(self.config.parallel, len(questions))):
                threading.Thread(target=work, daemon=True).start()
            for _ in questions:
                place, answer = done.get()
                if isinstance(answer, BaseException):
                    raise answer
                found[place] = answer
        finally:
            stop.set()
        return found

    def read(self, client: httpx.Client, messages: Sequence[Message], stop: threading.Event) -> float | None:
        """The probability of "A" against "B" as the reply's first token."""
        said = [{"role": m.role, "content": _SPECIAL.sub("\\g<0>\u200b", sound(m.content))} for m in messages]
        asks = self.asks
        body = {"model": self.config.model, "messages": said, "temperature": 0, **asks}
        response = self.post(client, body, stop)
        if response.status_code == 400 and (simpler := _without(asks, response.text)) is not None:
            self.asks = simpler
            return self.read(client, messages, stop)
        if response.status_code in (400, 413, 422) and _ABOUT_THE_TEXT.search(response.text):
            self.tell(f"leaves unjudged what it refuses ({_error(response)})")
            return None
        if response.status_code != 200:
            raise self.failed(f"{response.status_code}: {_error(response)}")
        try:
            return first_letter(response.json()["choices"][0])
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise self.failed(f"no chat completion but {response.text[:200]!r}; is the URL whole, with /v1?") from None

    def post(self, client: httpx.Client, body: Mapping[str, Json], stop: threading.Event) -> httpx.Response:
        """Ask, and again where the server is busy or away, until it takes too long."""
        until, wait = time.monotonic() + PATIENCE, 0.5
        while True:
            pause = wait * random.uniform(0.5, 1)  # or all threads would come back together
            try:
                response = client.post("chat/completions", json=body)
            except httpx.RequestError as error:
                why = str(error) or type(error).__name__
                if time.monotonic() + pause > until:
                    raise self.failed(why) from error
            else:
                why = f"{response.status_code}: {_error(response)}"
                after = response.headers.get("retry-after", "")
                pause = min(float(after), LONGEST_ASKED) if after.isdecimal() else pause
                if response.status_code not in _BUSY or time.monotonic() + pause > until:
                    return response
            self.tell(f"is busy or away ({why}); it is asked again for up to {PATIENCE:.0f} seconds each time")
            if stop.wait(pause):
                raise self.failed("it is asked no more")
            wait = min(2 * wait, LONGEST_WAIT)

    def tell(self, what: str) -> None:
        """A warning, of each kind the first."""
        if (kind := what.partition(" (")[0]) not in self.told:
            self.told.add(kind)
            logging.getLogger(__name__).warning("%s %s", self.who, what)

    def failed(self, why: str) -> PrefloopError:
        return PrefloopError(f"{self.who} failed ({why}); mend it and give the same command again, which goes on.")


def _without(asks: Mapping[str, Json], complaint: str) -> Mapping[str, Json] | None:
    """What to ask of a server that refuses log-probs, or so many; None where it complains of something else."""
    if "logprobs" not in complaint or "logprobs" not in asks:
        return None
    if asks["top_logprobs"] > FEW:
        return {**asks, "top_logprobs": FEW}
    return {key: value for key, value in asks.items() if "logprobs" not in key}


def _error(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:300]
    except (ValueError, LookupError, TypeError):
        return response.text[:300]


def first_letter(choice: Mapping[str, Any]) -> float | None:
    """The probability of "A" against "B" as a reply's first token; None where it is hardly either."""
    content = (choice.get("logprobs") or {}).get("content")
    likely = content[0].get("top_logprobs") if content else None
    if not likely:
        said = _LETTER.fullmatch(choice["message"]["content"] or "")
        return float(said[1] == "A") if said else None
    masses = {"A": 0.0, "B": 0.0}
    for token in likely:
        if said := _LETTER.fullmatch(token["token"]):
            masses[said[1]] += math.exp(token["logprob"])
    return share(masses["A"], masses["B"])


def share(a: float, b: float) -> float | None:
    """The probability of "A" against "B"; None where both together are less than LEAST."""
    return a / (a + b) if a + b >= LEAST else None
