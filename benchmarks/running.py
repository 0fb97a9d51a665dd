"""The program as a command in a workspace, its messages in a file; and what it ran on."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def run(words: Sequence[str], settings: Sequence[str], workspace: Path, log: str) -> str | None:
    """`prefloop WORDS --set SETTING ...`, its messages going to LOG.log in the workspace; None, or of a run that failed
    the log's name and its last line."""
    command = [sys.executable, "-m", "prefloop", *words, *(word for s in settings for word in ("--set", s))]
    path = os.pathsep.join(p for p in (*sys.path, os.environ.get("PYTHONPATH", "")) if p)
    place = workspace / f"{log}.log"
    with place.open("a", encoding="utf-8") as file:
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, cwd=workspace, stdout=file, stderr=subprocess.STDOUT, env=environment)
    return None if done.returncode == 0 else f"{log}: {(place.read_text().strip().splitlines() or ['?'])[-1]}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = re.findall(r"model name\s*: (.*)", _text("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", _text("/proc/meminfo"))
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": platform.system(),
    }


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
