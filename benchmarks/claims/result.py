"""What every claim's script ends with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from prefloop.data.jsonl import write_atomic


def finish(name: str, answer: Mapping[str, Any], figure: Figure, folder: Path, *, one_line: bool) -> int:
    """Write NAME.json, .svg and .png into a folder and print the answer; 0 where the claim holds, 1 otherwise."""
    write_atomic(folder / f"{name}.json", json.dumps(answer, indent=2) + "\n")
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=110)
    print(json.dumps(answer, indent=None if one_line else 2))
    return 0 if answer["holds"] else 1
