"""How far a model judge agrees with the people who chose, on their own comparisons, and what sways it.

    judge.py --data PAIRS.jsonl [--model MODEL] [--endpoint URL] [--pairs N] [--principle TEXT] [--json]

Each pair is asked in both orders. `agreement`: the share of pairs of which judge and people chose the same answer (95 %
interval over prompts; ties are half), beside what it is of the judge's first order alone, of the longer answer, and of
the judge's choices shuffled over pairs. Exits 0 where the interval lies above one half.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError
from running import machine

from prefloop.annotators.judge import build_judge
from prefloop.configs.judge import JudgeConfig
from prefloop.configs.shared import EngineConfig
from prefloop.data.heldout import distinct_pairs
from prefloop.data.jsonl import read_preferences
from prefloop.data.pairing import comparison_id
from prefloop.engine.build import use_threads
from prefloop.ops.statistics import share_bootstrap
from prefloop.run import progress
from prefloop.stages.judges import AT_ONCE, figures
from prefloop.types import Comparison, Preference, PrefloopError


def right(lead: float, target: float) -> float:
    """1 where a lead of the first answer is on the side that people chose, 0.5 of a tie."""
    return 0.5 if not lead else float((lead > 0) == (target > 0.5))


def turned(pair: Preference) -> Preference:
    """The same with its answers in the other order, for files that have the better one first."""
    return replace(pair, items=pair.items[::-1], target=1 - (1.0 if pair.target is None else pair.target))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the judge agrees with people more often than not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="comparisons by people, in a layout the loop reads")
    parser.add_argument("--model", default="smollm2-135m", help="model, checkpoint or run folder; of a server its name")
    parser.add_argument("--endpoint", default="", help="base URL of an OpenAI-compatible server that runs it")
    parser.add_argument("--key-variable", default="", help="environment variable that holds the server's key")
    parser.add_argument("--pairs", type=int, default=500, help="so many pairs, drawn")
    parser.add_argument("--principle", action="append", help="what it is asked; repeatable")
    parser.add_argument("--json", action="store_true", help="print on one line")
    options = parser.parse_args(arguments)
    asked = {"principles": tuple(options.principle)} if options.principle else {}
    try:
        config = JudgeConfig(
            name="judge-measured",
            model=options.model,
            endpoint=options.endpoint,
            key_variable=options.key_variable,
            **asked,
        )
    except ValidationError as error:
        parser.error("; ".join(found["msg"] for found in error.errors()))
    decided = [p for p in distinct_pairs(read_preferences(options.data, skip_bad=True)) if p.target != 0.5]
    if not decided or options.pairs < 1:
        raise SystemExit(f"judge.py: no pair to ask of {options.data}: give comparisons that people decided.")
    chance = random.Random(0)
    pairs = chance.sample(decided, min(options.pairs, len(decided)))
    pairs = [turned(pair) if chance.random() < 0.5 else pair for pair in pairs]
    comparisons = [Comparison(id=comparison_id(p.items), prompt=p.prompt, items=p.items) for p in pairs]
    engine = EngineConfig()
    use_threads(engine)
    judge, judgments = build_judge(config, engine, seed=0), []
    with progress(len(comparisons), "comparisons") as bar:
        for start in range(0, len(comparisons), AT_ONCE):
            judgments += judge(comparisons[start : start + AT_ONCE])
            bar.advance(len(comparisons[start : start + AT_ONCE]))
    told = [(p, j) for p, j in zip(pairs, judgments, strict=True) if j.probability is not None]
    if not told:
        raise SystemExit(f"judge.py: {options.model} said neither A nor B of any pair; take another model.")
    targets = [1.0 if p.target is None else p.target for p, _ in told]
    leads = [(j.probability or 0.0) - 0.5 for _, j in told]
    ways = {
        "agreement": leads,
        "first_order_alone": [json.loads(j.rationale)["shown_first"] - 0.5 for _, j in told],
        "longer": [float(len(p.items[0].text) - len(p.items[1].text)) for p, _ in told],
        "shuffled": chance.sample(leads, len(leads)),
    }
    found = {}
    for name, own in ways.items():
        by_prompt: dict[str, list[float]] = {}
        for (pair, _), lead, target in zip(told, own, targets, strict=True):
            by_prompt.setdefault(pair.prompt.id, []).append(right(lead, target))
        hits = [hit for values in by_prompt.values() for hit in values]
        low, high = share_bootstrap(list(by_prompt.values()))
        found[name] = {"share": sum(hits) / len(hits), "low": low, "high": high}
    answer = {
        "machine": machine(),
        "model": options.model,
        "endpoint": options.endpoint,
        "principles": config.principles,
        "pairs": len(pairs),
        **found,
        **figures([config], comparisons, [j for _, j in told], {})["judge-measured"],
    }
    print(json.dumps(answer, indent=None if options.json else 2))
    return int(found["agreement"]["low"] <= 0.5)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PrefloopError as error:
        sys.exit(f"judge.py: {error}")
