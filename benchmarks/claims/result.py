"""What every claim's script ends with."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
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


def claim(
    name: str,
    doc: str | None,
    run_seed: Callable[[int], Mapping[str, Any]],
    verdict: Callable[[Sequence[Mapping[str, Any]], float], Mapping[str, Any]],
    draw: Callable[[Mapping[str, Any]], Figure],
    arguments: list[str] | None,
    *,
    seeds: int,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The command line of a claim over seeds: run each, judge them with the minutes by `clock`, and `finish`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    start = clock()
    per_seed = [run_seed(seed) for seed in range(options.first, options.first + options.seeds)]
    answer = verdict(per_seed, (clock() - start) / 60)
    return finish(name, answer, draw(answer), options.out, one_line=options.json)
