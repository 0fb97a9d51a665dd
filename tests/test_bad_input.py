"""What a user can do wrong, through the command line: one sentence, an exit status, and nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from benchmarks.faults.forking import Forks

RECIPE = """
name = "try"
model = "tiny"
prompts = "prompts.jsonl"
engine = { threads = 1, dtype = "fp32" }
[sft]
demonstrations = "demonstrations.jsonl"
batch = 2
save_every = 2
[collect]
samples = 2
max_tokens = 8
[ppo]
reward = "rubric"
steps = 4
prompts_per_step = 2
group = 2
max_tokens = 8
"""
SERVERS: list[Forks] = []
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
PROGRESS = re.compile(r"== try: |\d+/\d+ ")
Files = Mapping[Path, bytes]


def prompt(name: str, content: str = "") -> dict[str, Any]:
    return {"id": name, "messages": [{"role": "user", "content": content or f"Say {name}."}]}


def completion(name: str, text: str, asked: str = "p0") -> dict[str, Any]:
    about = {"id": name, "prompt_id": asked, "segments": [], "text": text, "finish_reason": "stop"}
    return {"prompt": prompt(asked), "completion": about | {"sampling": {}, "seed": 0}}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    write_lines(tmp_path / "prompts.jsonl", [prompt(f"p{i}", f"Say {i}.") for i in range(4)])
    rows = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(6)]
    write_lines(tmp_path / "demonstrations.jsonl", rows)
    return tmp_path


def command(words: tuple[str, ...]) -> list[str]:
    stage, *rest = words
    return [stage, "recipe.toml", *(w for r in rest for w in ("--set", r))]


@pytest.fixture(scope="module", autouse=True)
def _server(forks: Forks) -> Iterator[None]:
    SERVERS.append(forks)
    yield
    SERVERS.remove(forks)


def call(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    (forks,) = SERVERS
    out, err = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    with out.open("wb") as first, err.open("wb") as second:
        status = forks.start("prefloop", *command(words), folder=folder, stdout=first, stderr=second).wait()
    return status, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")


def works(folder: Path, *words: str) -> None:
    status, _, stderr = call(folder, *words)
    assert status == 0, stderr


def files(folder: Path) -> dict[Path, bytes]:
    """All but a run's own bookkeeping of who holds it and how long it took."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("run.lock", "seconds.json")]
    return {path: path.read_bytes() for path in found}


def check_line(stderr: str) -> str:
    """The one line that is no progress."""
    (line,) = [line for line in stderr.splitlines() if not PROGRESS.match(line)]
    assert line.startswith("prefloop: ")
    return line.removeprefix("prefloop: ")


def check_whole(folder: Path, before: Files) -> None:
    after = files(folder)
    assert {path: after.get(path) for path in before} == before
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp") or ".tmp-" in p.name]
    fresh = [path for path in after if path not in before]
    assert not [
        path for path in fresh if path.name in ("result.json", "preferences.jsonl") or "checkpoint" in path.parts
    ]


def refused(folder: Path, *words: str) -> str:
    """The message with which the command fails, as it should."""
    before = files(folder)
    status, stdout, stderr = call(folder, *words)
    assert (status, stdout) == (1, ""), stderr
    check_whole(folder, before)
    return check_line(stderr)


DEMONSTRATIONS = {
    "empty": ("", "demonstrations.jsonl: the file is empty"),
    "broken": ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "comp\n', "demonstrations.jsonl:2: broken JSON"),
    "missing": ('{"prompt": "a", "answer": "b"}\n', "demonstrations.jsonl:1: field 'completion' is missing"),
    "too long": (json.dumps({"prompt": "a", "completion": "b" * 3000}) + "\n", "the model's context of 2048; shorten"),
}


@pytest.mark.parametrize(("content", "says"), DEMONSTRATIONS.values(), ids=DEMONSTRATIONS.keys())
def test_bad_demonstrations(workspace: Path, content: str, says: str) -> None:
    (workspace / "demonstrations.jsonl").write_text(content, encoding="utf-8")
    assert says in refused(workspace, "sft")


RECIPES = {
    "broken": ('name = "try\n', "recipe.toml: broken TOML: "),
    "unknown key": (
        RECIPE.replace("batch", "bacth"),
        "unknown key 'bacth' in [sft]; the nearest known one is 'batch'.",
    ),
    "wrong type": (RECIPE.replace("steps = 4", "steps = 4.5"), "[ppo] steps = 4.5 is refused"),
    "unknown stage": ('stages = ["sft", "pop"]' + RECIPE, "unknown stage 'pop'; the nearest known one is 'ppo'."),
}


@pytest.mark.parametrize(("content", "says"), RECIPES.values(), ids=RECIPES.keys())
def test_bad_recipes(workspace: Path, content: str, says: str) -> None:
    (workspace / "recipe.toml").write_text(content, encoding="utf-8")
    assert says in refused(workspace, "run")
    assert not (workspace / "runs").exists()


def test_a_prompt_longer_than_the_context(workspace: Path) -> None:
    write_lines(workspace / "prompts.jsonl", [prompt("short"), prompt("long", "a" * 3000)])
    says = refused(workspace, "collect", "collect.models=['tiny']")
    assert says.startswith("Prompt 'long' has 30")
    assert "context of 2048; shorten it" in says


COMPLETIONS = {
    "all empty": ([completion("a", ""), completion("b", " ")], "All 2 completions are empty"),
    "identical": ([completion("a", "yes"), completion("b", "yes")], "identical within each prompt"),
    "alone": ([completion("a", "yes"), completion("b", "no", "p1")], "No prompt has two completions"),
}


@pytest.mark.parametrize(("rows", "says"), COMPLETIONS.values(), ids=COMPLETIONS.keys())
def test_completions_that_cannot_be_compared(workspace: Path, rows: list[dict[str, Any]], says: str) -> None:
    write_lines(workspace / "completions.jsonl", rows)
    assert says in refused(workspace, "label", "label.completions=completions.jsonl")


def preferences(texts: tuple[str, str]) -> list[dict[str, Any]]:
    asked = [f"p{i}" for i in range(4)]
    items = [[completion(f"{a}-{i}", text, a)["completion"] for i, text in enumerate(texts)] for a in asked]
    return [{"prompt": prompt(a), "items": item, "target": 1.0} for a, item in zip(asked, items, strict=True)]


def test_no_comparison_is_left(workspace: Path) -> None:
    write_lines(workspace / "preferences.jsonl", preferences(("same", "same")))
    given = ("reward.model=tiny", "reward.preferences=preferences.jsonl")
    assert "No comparison is left to learn from" in refused(workspace, "reward", *given)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_loss_that_is_not_finite_names_the_remedy(workspace: Path, stage: str) -> None:
    assert "lower the learning rate" in refused(workspace, stage, f"{stage}.optim.lr=1e30", "ppo.policy=tiny")


def test_a_policy_is_no_reward_model_and_a_run_keeps_its_model(workspace: Path) -> None:
    works(workspace, "sft")
    assert "is a policy checkpoint, not a reward model" in refused(workspace, "ppo", "ppo.reward=runs/try/sft")
    says = refused(workspace, "sft", "sft.model=runs/try/sft")
    assert says.startswith('runs/try/sft: this run was started with other settings: model is "tiny" there')
    says = refused(workspace, "reward", "reward.preferences=runs/try/sft")
    assert says == "runs/try/sft/preferences.jsonl: no such file; check the path."


def test_a_reward_model_with_another_tokenizer_is_refused(workspace: Path) -> None:
    import torch

    from prefloop.models.load import load_model

    loaded = load_model("tiny", dtype=torch.float32)
    vocabulary = loaded.tokenizer.get_vocab()
    loaded.model.save_pretrained(workspace / "other")
    loaded.tokenizer.save_pretrained(workspace / "other")
    file = workspace / "other/tokenizer.json"
    shifted = json.loads(file.read_text())
    shifted["model"]["vocab"] = {token: (255 - i) for token, i in vocabulary.items() if i < 256}
    file.write_text(json.dumps(shifted))
    write_lines(workspace / "preferences.jsonl", preferences(("good answer", "bad")))
    works(workspace, "reward", "reward.model=other", "reward.preferences=preferences.jsonl")
    says = refused(workspace, "ppo", "ppo.policy=tiny", "ppo.reward=runs/try/reward")
    assert "has tokens of another tokenizer than this model's" in says


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(workspace: Path) -> None:
    words = ("sft", "sft.epochs=40", "sft.save_every=10")
    started = [sys.executable, "-m", "prefloop", *command(words)]
    before = files(workspace)
    metrics = workspace / "runs/try/sft/metrics.jsonl"
    with subprocess.Popen(started, cwd=workspace, env=ENVIRONMENT, stderr=PIPE, text=True) as run:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 15:
            assert run.poll() is None
            time.sleep(0.001)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate()
    assert run.returncode == 130
    check_whole(workspace, before)
    assert check_line(stderr) == "stopped; the same command continues"
    works(workspace, *words)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(120))
