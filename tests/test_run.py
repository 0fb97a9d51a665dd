from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prefloop.run
from prefloop.configs.ppo import PPOConfig
from prefloop.run import Run, config_hash, progress, write_atomic
from prefloop.types import Message, MetricRow, PrefloopError, Prompt


def config(out: Path, **settings: object) -> PPOConfig:
    return PPOConfig.model_validate({"out": str(out)} | settings)


def start(out: Path, **settings: object) -> Run:
    return Run.open(out, config(out, **settings), stage="ppo", parents={"policy": "runs/x/sft"})


def test_a_new_run_describes_itself(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "x" / "ppo"
    with start(out, seed=7) as run:
        assert run.path == out
        assert not run.finished
    about = json.loads((out / "run.json").read_text())
    assert about["stage"] == "ppo"
    assert about["seed"] == 7
    assert about["parents"] == {"policy": "runs/x/sft"}
    assert about["config_hash"] == config_hash(config(out, seed=7))
    assert about["versions"]["python"].startswith("3.")
    assert set(about["versions"]) == {"python", "torch", "transformers", "prefloop"}
    assert PPOConfig.model_validate(json.loads((out / "config.json").read_text())) == config(out, seed=7)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        run.log(0, {"x": 1.0})
    with pytest.raises(PrefloopError) as caught:
        start(tmp_path / "a", steps=5, kl={"target": 3.0})
    assert "steps is 30 there and 5 here; kl.target is 6.0 there and 3.0 here. Use the same settings" in str(
        caught.value
    )
    with pytest.raises(PrefloopError, match="and 2 more"):
        start(tmp_path / "a", steps=5, group=2, clip=0.1, gamma=0.9, seed=1)
    (tmp_path / "a").rename(tmp_path / "b")
    start(tmp_path / "b").close()


def test_a_setting_that_a_later_version_brought_has_its_default(tmp_path: Path) -> None:
    with start(tmp_path, seed=3) as run:
        run.log(0, {"x": 1.0})
    known = json.loads((tmp_path / "config.json").read_text())
    del known["steps"], known["kl"]["target"]
    (tmp_path / "config.json").write_text(json.dumps(known))
    start(tmp_path, seed=3).close()
    with pytest.raises(PrefloopError, match="settings: steps is 30 there and 5 here"):
        start(tmp_path, seed=3, steps=5)
    (tmp_path / "config.json").write_text(json.dumps(known | {"gone": 1}))
    with pytest.raises(PrefloopError, match="gone is 1 there and null here"):
        start(tmp_path, seed=3)


def test_settings_bind_only_once_something_was_done(tmp_path: Path) -> None:
    """A first call that failed on a mistyped input leaves nothing to go on from."""
    start(tmp_path, prompts="promts.jsonl").close()
    with start(tmp_path, prompts="prompts.jsonl") as run:
        assert json.loads((run.path / "config.json").read_text())["prompts"] == "prompts.jsonl"
        run.log(0, {"x": 1.0})
    with pytest.raises(PrefloopError, match="started with other settings"):
        start(tmp_path, prompts="promts.jsonl")


@pytest.mark.parametrize("name", ["prefloop.json", "preferences.jsonl", "samples.jsonl"])
def test_a_parent_that_changed_since_is_refused(tmp_path: Path, name: str) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / name).write_text("before")

    def open_run() -> Run:
        return Run.open(tmp_path / "a", config(tmp_path / "a"), stage="ppo", parents={"policy": str(parent)})

    with open_run() as run:
        run.log(0, {"x": 1.0})
    open_run().close()
    (parent / name).write_text("after")
    with pytest.raises(PrefloopError, match=r"its policy, .*parent, has changed since this run began"):
        open_run()


@pytest.mark.parametrize("setting", ["prompts", "watch", "policy", "ensemble"])
def test_files_code_and_models_of_others_that_changed_since_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    name, file = {
        "prompts": (str(tmp_path / "asked.jsonl"), tmp_path / "asked.jsonl"),
        "watch": ("own_judge:score", tmp_path / "own_judge.py"),
        "policy": (str(model), model / "model.safetensors"),
        "ensemble": (f"mean:{tmp_path / 'other'}, {model}", model / "model.safetensors"),
    }[setting]
    file.write_text("before")
    setting = "watch" if setting == "ensemble" else setting

    def open_run() -> Run:
        parents = {"policy": name if setting == "policy" else "smollm2-135m"}
        return Run.open(tmp_path / "a", config(tmp_path / "a", **{setting: name}), stage="ppo", parents=parents)

    with open_run() as run:
        run.log(0, {"x": 1.0})
    open_run().close()
    file.write_text("after!")
    with pytest.raises(PrefloopError, match=rf"its {setting}, .* has changed since this run began"):
        open_run()


def test_what_a_run_left_before_its_first_step_is_cleared(tmp_path: Path) -> None:
    """An early stop saves its best before the first step is whole."""
    start(tmp_path / "a").close()
    for name in ("best", "best.tmp-1"):
        (tmp_path / "a" / name).mkdir()
    with start(tmp_path / "a", steps=5) as run:
        assert not list(run.path.glob("best*"))
        (run.path / "best").mkdir()
        run.log(0, {"x": 1.0})
        run.finish({})
    start(tmp_path / "a", steps=5).close()
    assert not (tmp_path / "a" / "best").exists()


def test_hash_depends_on_settings_but_not_on_the_folder(tmp_path: Path) -> None:
    assert config_hash(config(tmp_path / "a")) == config_hash(config(tmp_path / "b"))
    assert config_hash(config(tmp_path / "a")) != config_hash(config(tmp_path / "a", seed=1))


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(PrefloopError, match=r"holds thesis\.tex but is no run"):
        start(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "preferences.jsonl").touch()
    with pytest.raises(PrefloopError, match=r"holds preferences\.jsonl but is no run"):
        start(tmp_path / "mine")
    with pytest.raises(PrefloopError, match="cannot be used as a run folder"):
        start(tmp_path / "thesis.tex")


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    code = "import sys; from test_of_run import *; run = start(Path(sys.argv[1])); print('held', flush=True); input()"
    (tmp_path / "test_of_run.py").write_text(Path(__file__).read_text())
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PrefloopError, match=f"process {holder.pid} works in this run folder"):
            start(out)
        holder.send_signal(signal.SIGKILL)
    with start(out), pytest.raises(PrefloopError, match=f"process {os.getpid()} works"):
        start(out)
    start(out).close()


def test_metrics_and_samples_are_kept_in_order(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="ä\u2028b\ud800"),))
    with start(tmp_path) as run:
        assert not (run.metrics() or run.samples())
        run.log(0, {"loss/train": 2.5, "n": 3})
        run.log(1, {})
        run.sample(1, {"prompt": prompt, "score": None})
    with start(tmp_path) as run:
        run.log(2, {"loss/train": 1e-30})
        assert run.metrics() == [
            MetricRow(step=0, values={"loss/train": 2.5, "n": 3}),
            MetricRow(step=1, values={}),
            MetricRow(step=2, values={"loss/train": 1e-30}),
        ]
        (row,) = run.samples()
        assert row["step"] == 1
        assert row["prompt"]["messages"] == [{"role": "user", "content": "ä\u2028b\ud800"}]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    with start(tmp_path) as run:
        with pytest.raises(PrefloopError, match=f"metric kl/response is {bad} at step 4"):
            run.log(4, {"loss/train": 1.0, "kl/response": bad})
        with pytest.raises(PrefloopError, match="cannot be written as JSON"):
            run.sample(4, {"score": bad})
        assert not (run.metrics() or run.samples())


@settings(max_examples=20)
@given(steps=st.lists(st.integers(0, 9)), cut=st.integers(-1, 10))
def test_rewind_keeps_exactly_the_steps_up_to_the_cut(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], cut: int
) -> None:
    with start(tmp_path_factory.mktemp("run")) as run:
        for step in steps:
            run.log(step, {"x": float(step)})
            run.sample(step, {"x": step})
        before = [(run.path / name).read_bytes().splitlines() for name in ("metrics.jsonl", "samples.jsonl") if steps]
        run.rewind(cut)
        kept = [step for step in steps if step <= cut]
        assert [row.step for row in run.metrics()] == [row["step"] for row in run.samples()] == kept
        if steps:
            lines = [line for line, step in zip(before[0], steps, strict=True) if step <= cut]
            assert (run.path / "metrics.jsonl").read_bytes().splitlines() == lines


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.log(1, {"x": 1.0})
        run.sample(1, {"text": "whole"})
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"step": 2, "x": 2.')
    with start(tmp_path) as run:
        run.log(2, {"x": 2.5})
        assert [row.values for row in run.metrics()] == [{"x": 1.0}, {"x": 2.5}]
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"st')
        run.rewind(2)
        assert [row.step for row in run.metrics()] == [1, 2]
        assert [row["step"] for row in run.samples()] == [1]


def test_finish_sums_the_seconds_of_all_sessions(tmp_path: Path) -> None:
    with start(tmp_path) as run, pytest.raises(PrefloopError, match="has not finished"):
        _ = run.result
    write_atomic(tmp_path / "seconds.json", '{"seconds": 1000.0}')
    with start(tmp_path) as run:
        result = run.finish({"checkpoint": "c", "slices": {"format": {"n": 3}}})
        assert run.finished
    assert 1000 <= result["seconds"] < 1100
    assert result == {"checkpoint": "c", "slices": {"format": {"n": 3}}, "seconds": result["seconds"]}
    with start(tmp_path) as run:
        assert run.result == result
        with pytest.raises(PrefloopError, match="cannot be written as JSON"):
            run.finish({"accuracy": math.nan})
        assert run.result == result


def test_checkpoint_folders_sort_by_step(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        assert run.checkpoint_folder(10) == tmp_path / "checkpoints" / "step-000010"
        assert run.checkpoint_folder(10).parent.is_dir()
        assert not run.checkpoint_folder(10).exists()


def test_a_torn_settings_file_is_named(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.log(0, {"x": 1.0})
    (tmp_path / "config.json").write_text('{"out"')
    with pytest.raises(PrefloopError, match=r"config\.json: broken JSON"):
        start(tmp_path)


def test_an_atomic_write_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "één")
    write_atomic(path, "twee")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "twee"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_progress_without_a_terminal_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(10, "steps") as ticker:
        ticker.advance(1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(prefloop.run, "_LINE_EVERY", 0.0)
    with progress(10, "steps", done=4) as ticker:
        ticker.advance(2, "kl 3.1")
        ticker.advance(0)
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert shown.out == ""
    assert first.startswith("6/10 steps, ")
    assert first.endswith(" s left, kl 3.1")
    assert " steps/s, " in second


def test_progress_may_grow_shrink_and_take_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prefloop.run, "_LINE_EVERY", 0.0)
    with progress(10, "labels", done=4) as ticker:
        ticker.show(5, 40, "campaign paused")
        ticker.show(3, 40)
    grown, shrunk = capsys.readouterr().err.splitlines()
    assert grown.startswith("5/40 labels, ") and grown.endswith(" left, campaign paused")
    assert shrunk.startswith("3/40 labels, ") and shrunk.endswith("time left unknown")
    assert [prefloop.run._time(seconds) for seconds in (59.6, 570, 5940, 7500)] == [
        "60 s",
        "10 min",
        "99 min",
        "2 h 5 min",
    ]


def test_progress_on_a_terminal_is_a_bar() -> None:
    import pty

    code = "from prefloop.run import progress\nwith progress(3, 'steps') as t: t.advance(3, 'done well')"
    primary, secondary = pty.openpty()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", code], stderr=secondary, env=environment, check=True)
    os.close(secondary)
    shown = os.read(primary, 65536).decode()
    os.close(primary)
    assert "3/3" in shown
    assert "done well" in shown
