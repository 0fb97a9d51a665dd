import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from prefloop.rewards.rubric import score_text
from prefloop.types import Completion, Message, Preference, Prompt, Sampling, Segment, to_json

SLICES = ("everyday", "factual", "format", "unsafe", "writing")
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \u202egnp.exe\u202c \x1b[31mred\x00 </bdi></div> {{ 7 * 7 }}"
)
GOOD = (
    "Water the plant less, move it nearer to the window, and let the soil dry between waterings.",
    "- Water it once a week.\n- Give it more light.\n- Check the roots for rot.",
    "Yellow leaves often mean too much water. Let the plant dry out and put it in brighter light.",
)
POOR = (
    "Certainly! Great question. Plants are plants and plants need water because plants are plants and need water.",
    "I'm sorry, but I can't help with that.",
    "Plants can have many different problems, and there are a number of things that one might consider when the",
    HOSTILE,
)


def make_completion(name: str, prompt: Prompt, rng: random.Random, skill: float) -> Completion:
    text = rng.choice(GOOD if rng.random() < skill else POOR)
    tokens = tuple(range(len(text.split())))
    return Completion(
        id=name,
        prompt_id=prompt.id,
        segments=(Segment(author="policy", tokens=tokens, logprobs=(-1.0,) * len(tokens)),),
        text=text,
        finish_reason="length" if text.endswith("the") else "stop",
        sampling=Sampling(),
        seed=0,
    )


def make_prompts(split: str, each: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"{name}-{split}-{i:03d}",
            messages=(Message(role="user", content=f"My plant's leaves turn yellow ({name} {i}). What should I do?"),),
            slice=name,
            split=split,
            checks={"mentions": [["water"], ["light", "window"]], "ideal_words": 30},
        )
        for name in SLICES
        for i in range(each)
    ]


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(to_json(row)) + "\n" for row in rows))


def write_stage(folder: Path, config: object, result: dict[str, object], parents: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"stage": folder.name, "seed": 0, "parents": parents, "started": "2025-01-01T10:00:00+00:00"}
    for name, value in (("config", config), ("run", about | {"versions": {"prefloop": "0.1.0"}}), ("result", result)):
        (folder / f"{name}.json").write_text(json.dumps(value))


def write_evaluation(folder: Path, rng: random.Random, skills: dict[str, float], each: int) -> None:
    rows = []
    for model, skill in skills.items():
        for prompt in make_prompts("eval", each):
            for k in range(2):
                completion = make_completion(f"{model}-{prompt.id}-{k}", prompt, rng, skill)
                score = score_text(prompt, completion.text, finished=completion.finish_reason == "stop")
                row = {"step": 0, "model": model, "prompt": prompt, "completion": completion}
                rows.append(row | {"score": score.value, "parts": score.parts})
    write_lines(folder / "samples.jsonl", rows)
    write_stage(folder, {"judge": "rubric", "samples": 2}, {"seconds": 181.5}, {"policy": "ppo", "sft": "sft"})


def write_labels(root: Path, rng: random.Random, each: int) -> None:
    preferences, pairs = [], []
    for prompt in make_prompts("dev", each):
        for k in range(2):
            items = tuple(make_completion(f"{prompt.id}-{k}{side}", prompt, rng, 0.5) for side in "ab")
            gold = [score_text(prompt, c.text, finished=c.finish_reason == "stop").value for c in items]
            right = 0.5 if abs(gold[0] - gold[1]) < 1e-9 else float(gold[0] > gold[1])
            target = sum(right if rng.random() < 0.8 else 1 - right for _ in range(3)) / 3
            preferences.append(Preference(prompt=prompt, items=items, target=target, group=prompt.id))
            score = [3 * g + rng.gauss(0, 0.8) for g in gold]
            words = [len(c.text.split()) for c in items]
            pair = {"step": 0, "prompt_id": prompt.id, "target": target, "score_a": score[0], "score_b": score[1]}
            pairs.append(pair | {"words_a": words[0], "words_b": words[1], "gold_a": gold[0], "gold_b": gold[1]})
    write_lines(root / "label" / "preferences.jsonl", preferences)
    judged = {
        "comparisons": len(pairs),
        "judgments": 3 * len(pairs),
        "agreement": 0.69,
        "simulated": True,
        "seconds": 4.2,
    }
    write_stage(root / "label", {"pairs": 2}, judged, {"completions": "collect"})
    write_lines(root / "reward" / "samples.jsonl", pairs)
    centers = [0.525 + 0.05 * i for i in range(10)]
    reliability = [{"predicted": p, "observed": 0.5 + 0.8 * (p - 0.5) + rng.gauss(0, 0.03), "n": 9} for p in centers]
    trained = {"accuracy_train": 0.78, "ece": 0.061, "reliability": reliability, "seconds": 402.0}
    write_stage(root / "reward", {"epochs": 1, "batch": 8}, trained, {"preferences": "label", "model": "sft"})


def write_ppo(folder: Path, rng: random.Random, steps: int = 30) -> None:
    prompt, rows, rollouts, coefficient = make_prompts("train", 1)[0], [], [], 0.1
    for step in range(steps):
        kls = [max(0.0, 6 * (1 - math.exp(-step / 6)) + rng.gauss(0, 0.8)) for _ in range(4)]
        kl = sum(kls) / 4
        row = {"step": step, "reward/score": 1.6 * (1 - math.exp(-step / 12)) + rng.gauss(0, 0.12), "kl/response": kl}
        won = min(1, max(0, 0.5 + 0.2 * (1 - math.exp(-step / 12)) + rng.gauss(0, 0.05)))
        rows.append(row | {"kl/coef": coefficient, "kl/target": 6.0, "gold/win_rate": won})
        coefficient *= 1 + 0.5 * min(0.2, max(-0.2, kl / 6 - 1))
        for k, value in enumerate(kls):
            completion = make_completion(f"rollout-{step}-{k}", prompt, rng, 0.6)
            rollouts.append({"step": step, "prompt_id": prompt.id, "completion": completion, "score": 0.1, "kl": value})
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "samples.jsonl", rollouts)
    config = {"kl": {"controller": "adaptive", "coef": 0.1, "target": 6.0, "horizon": 2.0}, "steps": steps}
    write_stage(folder, config, {"seconds": 1211.0}, {"policy": "sft", "reward": "reward"})


@pytest.fixture(scope="session")
def fake_run() -> Callable[..., Path]:
    """A run folder with every stage; `each` prompts per slice."""

    def make(root: Path, *, control: bool = True, each: int = 2) -> Path:
        rng = random.Random(0)
        write_stage(root / "sft", {"model": "smollm2-135m", "epochs": 2}, {"seconds": 301.0}, {"model": "smollm2-135m"})
        write_stage(root / "collect", {"samples": 4, "note": HOSTILE}, {"seconds": 222.0}, {"model-0": "sft"})
        write_labels(root, rng, each)
        write_ppo(root / "ppo", rng)
        write_evaluation(root / "evaluate", rng, {"policy": 0.72, "sft": 0.5, "base": 0.3}, each)
        if control:
            for name, seconds in (("reward", 390.0), ("ppo", 1190.0)):
                write_stage(root / "control" / name, {}, {"seconds": seconds}, {})
            write_evaluation(root / "control" / "evaluate", rng, {"policy": 0.5, "sft": 0.5}, each)
        return root

    return make
