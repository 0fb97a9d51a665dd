"""A checkpoint that answers in conversations, in a process of its own: `python -m prefloop.stages.reply CHECKPOINT`.

After {"ready": true}, each line of JSON on stdin is a request {"id", "messages": [{"role", "content"}], "seed", "n"},
and each on stdout its reply {"id", "texts", "finished" (whether it ended by itself)}, n of each, or {"id", "error"}.
It ends with its stdin, and so with whoever started it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from prefloop.configs.shared import EngineConfig
from prefloop.data.trees import Encoder
from prefloop.engine.build import available_cores, build_encoder, build_sampler, load, use_threads
from prefloop.engine.generate import LocalSampler
from prefloop.stages.sampling import sample_groups
from prefloop.types import Message, PrefloopError, Prompt, Sampling, from_json

MAX_TOKENS = 256


def run(checkpoint: str, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer line after line. Raises PrefloopError when the checkpoint cannot be loaded."""
    engine = EngineConfig(threads=max(1, available_cores() // 2))  # the rest is for whoever labels meanwhile
    use_threads(engine)
    loaded = load(checkpoint, engine)
    encoder, sampler = build_encoder(loaded), build_sampler(loaded, checkpoint, engine)
    _write(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        try:
            made = _answers(request, encoder, sampler)
        except PrefloopError as error:
            made = {"error": str(error)}
        _write(replies, {"id": request["id"], **made})


def _answers(request: Mapping[str, Any], encoder: Encoder, sampler: LocalSampler) -> dict[str, Any]:
    messages = tuple(from_json(Message, message, "message") for message in request["messages"])
    prompt = Prompt(id=request["id"], messages=messages)
    samplings = [Sampling(temperature=1.0, max_tokens=MAX_TOKENS)] * request["n"]
    (made,) = sample_groups(sampler, encoder, [prompt], samplings=samplings, seed=(request["seed"], "reply"))
    return {"texts": [answer.text for answer in made], "finished": [answer.finish_reason == "stop" for answer in made]}


def _write(replies: BinaryIO, reply: Mapping[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def main() -> None:
    """What libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)
        try:
            run(sys.argv[1], sys.stdin.buffer, replies)
        except PrefloopError as error:
            sys.exit(f"prefloop: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
