"""A process that speaks the lines of `stages/reply.py`, without a model: quick to start, and bad when asked to be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    said = request["messages"][-1]["content"]
    if said == "wait":
        time.sleep(60)
    if said == "die":
        os.kill(os.getpid(), 9)
    if said == "refuse":
        print(json.dumps({"id": request["id"], "error": "secret-model-1: too long"}), flush=True)
        continue
    texts = [said[4:] if said[:4] == "say " else f"{os.getpid()} heard {said}"] * request["n"]
    texts = [text + f" ({k})" * bool(k) for k, text in enumerate(texts)]
    print(json.dumps({"id": request["id"], "texts": texts, "finished": [True] * request["n"]}), flush=True)
"""


def put_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *checkpoints: str) -> str:
    """Have it started for folders of these names; returns the real interpreter.

    It answers "PID heard MESSAGE", or after "say " what follows; at "wait" it takes a minute, at "die" it dies, at
    "refuse" it says why not."""
    real = sys.executable
    (folder / "program.py").write_text(_PROGRAM)
    program = folder / "program"
    program.write_text(f"#!/bin/sh\nexec {real} {folder}/program.py\n")
    program.chmod(0o755)
    for name in checkpoints:
        (folder / name).mkdir()
    monkeypatch.setattr(sys, "executable", str(program))
    return real
