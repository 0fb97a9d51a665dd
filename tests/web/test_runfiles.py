"""Run folders as the pages read them: while they are written, torn, damaged, and whatever they are called."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.ppo import PPOConfig
from prefloop.run import Run
from prefloop.store.campaigns import MissingError
from prefloop.types import PrefloopError, to_json
from prefloop.web import runfiles
from prefloop.web.runfiles import find, find_all, overshoot, series, sides, thinned


def ppo(folder: Path, name: str = "try", steps: int = 4) -> Run:
    config = PPOConfig(out=str(folder / "runs" / name / "ppo"), steps=steps)
    return Run.open(config.out, config, stage="ppo", parents={})


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys, prefloop.web.runfiles; print([m for m in ('torch', 'matplotlib', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_stage_is_to_do_running_interrupted_finished(tmp_path: Path) -> None:
    assert find_all(tmp_path) == []
    (tmp_path / "runs" / "try").mkdir(parents=True)
    (tmp_path / "runs" / "try" / "recipe.json").write_text(json.dumps({"stages": ["ppo", "evaluate"]}))
    assert {name: stage.state for name, stage in find(tmp_path, "try").stages.items()} == {
        "ppo": "to do",
        "evaluate": "to do",
    }
    with ppo(tmp_path) as run:
        run.log(0, {"reward/score": 1.0})
        found = find(tmp_path, "try")
        assert (found.state, found.stages["ppo"].state, found.stages["evaluate"].state) == (
            "running",
            "running",
            "to do",
        )
        stage = found.current
        assert stage is not None and (stage.name, stage.step, stage.steps, stage.share) == ("ppo", 1, 4, 0.25)
        assert stage.age is not None and stage.age < 60
    assert find(tmp_path, "try").state == find(tmp_path, "try").stages["ppo"].state == "interrupted"
    with ppo(tmp_path) as run:
        run.finish({})
    found = find(tmp_path, "try")
    assert (found.state, found.stages["ppo"].state, found.stages["ppo"].share) == ("interrupted", "finished", 1.0)
    (tmp_path / "runs" / "try" / "recipe.json").unlink()
    assert find(tmp_path, "try").state == "finished"


def test_asking_does_not_keep_a_stage_from_starting(tmp_path: Path) -> None:
    """A reader that asks all the time, in a process of its own, while a run folder is opened again and again."""
    ppo(tmp_path).close()
    path = str(tmp_path / "runs" / "try" / "ppo")
    code = f"""if True:
        import pathlib, time
        from prefloop.run import occupied
        print(flush=True)
        while True:
            occupied(pathlib.Path({path!r}))
            time.sleep(0.0005)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        reader.stdout.readline()
        try:
            for _ in range(50):
                ppo(tmp_path).close()
        finally:
            reader.kill()
    with ppo(tmp_path), pytest.raises(PrefloopError, match="works in this run folder"):
        ppo(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", "../try", "try/ppo", "/etc", "try\0", "..\\try", "a" * 5000, "out"])
def test_only_folders_of_runs_have_names(tmp_path: Path, name: str) -> None:
    ppo(tmp_path).close()
    outside = tmp_path / "outside"
    ppo(outside, "out").close()
    (tmp_path / "runs" / "out").symlink_to(outside / "runs" / "out")
    with pytest.raises(MissingError):
        find(tmp_path, name)
    assert [run.name for run in find_all(tmp_path)] == ["try"]


def test_series_go_on_where_the_reader_stopped_and_pass_torn_lines_over(tmp_path: Path) -> None:
    with ppo(tmp_path, steps=9) as run:
        for step in range(3):
            run.log(step, {"reward/score": step / 2, "kl/response": 1.0})
    stage = find(tmp_path, "try").stages["ppo"]
    names = ["reward/score", "gold/win_rate"]
    assert series(stage, names, -1) == {"reward/score": [(0, 0.0), (1, 0.5), (2, 1.0)], "gold/win_rate": []}
    with (stage.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "reward/score": 1.')
        file.flush()
        assert series(stage, names, 1)["reward/score"] == [(2, 1.0)]
        assert find(tmp_path, "try").stages["ppo"].step == 3
        file.write(b'5}\nnot JSON\n{"step": 4, "reward/score": 2.0}\n')
        file.flush()
        assert series(stage, names, 1)["reward/score"] == [(2, 1.0), (3, 1.5), (4, 2.0)]
        assert find(tmp_path, "try").stages["ppo"].step == 5
    (stage.path / "metrics.jsonl").write_text('{"step": 0, "reward/score": 7.0}\n')
    assert series(stage, names, -1)["reward/score"] == [(0, 7.0)]


def test_a_run_that_goes_on_from_its_checkpoint_is_read_anew(tmp_path: Path) -> None:
    with ppo(tmp_path) as run:
        for step in range(4):
            run.log(step, {"reward/score": float(step)})
        stage = find(tmp_path, "try").stages["ppo"]
        assert len(series(stage, ["reward/score"], -1)["reward/score"]) == 4
        run.rewind(1)
        for step in range(2, 4):
            run.log(step, {"reward/score": step + 100.0})
        assert series(stage, ["reward/score"], -1)["reward/score"] == [(0, 0.0), (1, 1.0), (2, 102.0), (3, 103.0)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 40))
def test_thinned_series_keep_both_ends_and_both_extremes(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert len(kept) <= most and kept == sorted(kept) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {pick(v for _, v in kept) for pick in (min, max)} == {pick(values) for pick in (min, max)}
    if len(points) <= most:
        assert kept == points


def test_ten_thousand_steps_become_five_hundred_points(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "long" / "ppo"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(
        "".join(f'{{"step": {i}, "reward/score": {i % 97}}}\n' for i in range(10_000))
    )
    found = series(find(tmp_path, "long").stages["ppo"], ["reward/score"], -1)["reward/score"]
    assert 400 < len(found) <= 500 and found[0][0] == 0 and found[-1][0] == 9999


def noisy(rng: random.Random, level: Callable[[float], float], steps: int, sd: float) -> list[tuple[int, float]]:
    return [(step, level(step / steps) + rng.gauss(0, sd)) for step in range(steps)]


@pytest.mark.parametrize("steps", [20, 60, 400])
def test_over_optimisation_is_seen_where_it_is_planted_and_not_in_noise(steps: int) -> None:
    def risen(share: float) -> float:
        return 2 * share

    def bent(share: float) -> float:
        return 0.5 + (0.8 * share if share < 0.5 else 0.8 * (1 - share))

    rng = random.Random(1)
    planted = [overshoot(noisy(rng, risen, steps, 0.1), noisy(rng, bent, steps, 0.03)) for _ in range(50)]
    assert all(found and 0.3 * steps < found.step < 0.8 * steps for found in planted)
    assert all(found and found.reward > 0 and found.preference > 0.1 for found in planted)
    flat = [overshoot(noisy(rng, risen, steps, 0.1), noisy(rng, lambda _: 0.6, steps, 0.03)) for _ in range(300)]
    assert sum(found is not None for found in flat) <= 3
    good = [
        overshoot(noisy(rng, risen, steps, 0.1), noisy(rng, lambda x: 0.5 + 0.3 * x, steps, 0.03)) for _ in range(50)
    ]
    fell = [overshoot(noisy(rng, lambda x: -2 * x, steps, 0.1), noisy(rng, bent, steps, 0.03)) for _ in range(50)]
    assert not any(good) and not any(fell)
    assert overshoot([(0, 1.0)], [(0, 0.5)]) is None and overshoot([], []) is None


def write_samples(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text("{}")
    (path / "samples.jsonl").write_text("".join(json.dumps(to_json(row)) + "\n" for row in rows))


def said(text: str) -> dict[str, Any]:
    return {"text": text, "finish_reason": "stop"}


def test_answers_stand_side_by_side_from_rollouts_then_from_the_evaluation(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "try"
    prompts = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"Say {i}."}], "slice": ""} for i in range(3)]
    write_samples(root / "sft", [])
    assert sides(find(tmp_path, "try"), 0) is None
    write_samples(
        root / "collect",
        [
            {"step": 0, "model": "m", "prompt": p, "completion": said(f"before {p['id']}{k}")}
            for p in prompts
            for k in "ab"
        ],
    )
    assert sides(find(tmp_path, "try"), 0) is None
    rollouts = [("p1", 0, "old"), ("p2", 0, "other"), ("p9", 1, "unknown"), ("p1", 1, "new a"), ("p1", 1, "new b")]
    write_samples(
        root / "ppo", [{"step": s, "prompt_id": p, "completion": said(text), "score": 0.5} for p, s, text in rollouts]
    )
    found = sides(find(tmp_path, "try"), 0)
    assert found is not None and (found.index, found.count, found.models) == (0, 2, ["sft"])
    assert found.prompt["messages"][0]["content"] == "Say 1."
    assert [row["completion"]["text"] for row in found.before] == ["before p1a", "before p1b"]
    assert [row["completion"]["text"] for row in found.after] == ["new a", "new b"]

    judged = [
        {"step": 0, "model": m, "prompt": p, "completion": said(f"{m} {p['id']}"), "score": 1.0, "parts": {}}
        for m in ("policy", "sft", "base")
        for p in prompts
    ]
    write_samples(root / "evaluate", judged[:3])
    half = sides(find(tmp_path, "try"), 0)
    assert half is not None and half.count == 2, "half an evaluation is none"
    write_samples(root / "evaluate", judged)
    for index, model, expected in ((1, "sft", "sft p1"), (99, "base", "base p2"), (-4, "nobody", "sft p0")):
        found = sides(find(tmp_path, "try"), index, model)
        assert found is not None and (found.count, list(found.models)) == (3, ["sft", "base"])
        assert found.before[0]["completion"]["text"] == expected
        assert found.after[0]["completion"]["text"] == f"policy {expected[-2:]}"


def test_damaged_files_leave_a_run_readable(tmp_path: Path) -> None:
    ppo(tmp_path).close()
    path = tmp_path / "runs" / "try" / "ppo"
    for name in ("config.json", "result.json", "metrics.jsonl"):
        (path / name).write_bytes(b"\xff{[" * 10)
    (path.parent / "recipe.json").write_text('"odd"')
    found = find(tmp_path, "try")
    assert found.stages["ppo"].step == 0 and series(found.stages["ppo"], ["reward/score"], -1) == {"reward/score": []}
    assert runfiles.find_all(tmp_path)[0].name == "try"


def test_of_a_run_in_rounds_the_newest_that_began_a_stage_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "try"
    root.mkdir(parents=True)
    (root / "recipe.json").write_text(json.dumps({"stages": ["ppo"], "rounds": 10}))
    assert find(tmp_path, "try").stages["ppo"].state == "to do"
    with ppo(tmp_path, "try") as run:  # of the same recipe, before it had rounds
        run.log(0, {"reward/score": -1.0})
        run.finish({"checkpoint": ""})
    for number in (1, 2, 10):
        with ppo(tmp_path, f"try/rounds/{number}") as run:
            run.log(0, {"reward/score": float(number)})
            run.finish({"checkpoint": ""})
        found = find(tmp_path, "try")
        assert found.stages["ppo"].path == root / "rounds" / str(number) / "ppo"
        assert found.state == "interrupted"  # between rounds
        assert series(found.stages["ppo"], ["reward/score"], -1) == {"reward/score": [(0, float(number))]}
    (root / "rounds" / "10" / "round.json").write_text("{}")
    assert find(tmp_path, "try").state == "finished"
