"""The command line: quick to start, complete in its help, one line for what a user can mend."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import prefloop
from prefloop import cli
from prefloop.configs.describe import stage_keys
from prefloop.configs.pipeline import STAGES
from prefloop.store.labels import open_store
from prefloop.types import Comparison, Completion, Judgment, Message, PrefloopError, Prompt, Sampling

runner = CliRunner()


def test_help_loads_nothing_heavy() -> None:
    code = """if True:
        import sys
        from prefloop.cli import app
        app(["--help"], standalone_mode=False)
        print([m for m in ("torch", "transformers", "pydantic", "sqlalchemy", "rich") if m in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(stage in done.stdout for stage in STAGES)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_packages() -> None:
    assert runner.invoke(cli.app, ["--version"]).stdout == prefloop.__version__ + "\n"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stages_help_lists_every_key(stage: str) -> None:
    text = runner.invoke(cli.app, [stage, "--help"]).stdout
    assert cli.STAGE_HELP[stage] in text
    words = text.split()
    for key in stage_keys(stage):
        assert key.name in words
        assert key.help.split()[0] in words


@pytest.mark.parametrize("command", ["run", "quickstart"])
def test_help_of_a_whole_run_lists_the_recipes_keys(command: str) -> None:
    words = runner.invoke(cli.app, [command, "--help"]).stdout.split()
    assert {"name", "controls", "engine.dtype", *STAGES} <= set(words)


@pytest.mark.parametrize("words", [["quickstart"], ["label", "recipe.toml"]])
def test_who_compares_is_an_option_and_short_for_a_key(words: list[str]) -> None:
    done = runner.invoke(cli.app, [*words, "--annotator", "robots"])
    assert done.exit_code == 2 and "people" in done.stderr
    assert "--annotator" in runner.invoke(cli.app, [words[0], "--help"]).stdout
    assert cli._by("people", ["seed=1"]) == ["seed=1", "label.annotator=people"]
    assert cli._by(None, None) == []


@pytest.mark.parametrize("command", ["run", *sorted(STAGES)])
def test_a_mistake_is_one_line_and_one_json_object(command: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "try"\n', encoding="utf-8")
    words = [command, str(recipe), "--set", "ppo.kl.targte=4"]
    plain, as_json = runner.invoke(cli.app, words), runner.invoke(cli.app, [*words, "--json"])
    assert (plain.exit_code, as_json.exit_code) == (1, 1)
    line = f"prefloop: {recipe}: unknown key 'targte' in [ppo.kl]; the nearest known one is 'target'.\n"
    assert (plain.stdout, plain.stderr) == ("", line)
    assert as_json.stderr == line
    assert "prefloop: " + json.loads(as_json.stdout)["error"] + "\n" == line


def test_an_interrupt_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Mapping[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        cli.finish(work, as_json=True)
    out, err = capsys.readouterr()
    assert caught.value.exit_code == 130
    assert err == "prefloop: stopped; the same command continues\n"
    assert json.loads(out) == {"error": "stopped; the same command continues"}


def test_stdout_of_the_work_goes_to_stderr_under_json(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Mapping[str, object]:
        print("step 1")
        return {"seconds": 1.5, "gap": float("nan"), "slices": {"format": [1, 2]}}

    cli.finish(work, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"seconds": 1.5, "gap": None, "slices": {"format": [1, 2]}}
    assert "NaN" not in out
    assert err == "step 1\n"


def test_an_error_of_several_lines_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Mapping[str, object]:
        raise PrefloopError("first\n  second")

    with pytest.raises(typer.Exit):
        cli.finish(work, as_json=False)
    assert capsys.readouterr() == ("", "prefloop: first second\n")


def answer(name: str) -> Completion:
    return Completion(
        id=name,
        prompt_id="p",
        segments=(),
        text=name,
        finish_reason="stop",
        sampling=Sampling(),
        seed=0,
        checkpoint="m",
    )


def test_labels_go_out_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two"))
    prompt = Prompt(id="p", messages=(Message(role="user", content="Which?"),))
    with open_store(one) as store:
        store.add_comparisons("runs/try/label", [Comparison(id="c", prompt=prompt, items=(answer("a"), answer("b")))])
        judgment = Judgment(comparison_id="c", annotator="Ada", ranking=(1, 0))
        store.add_judgments("runs/try/label", [judgment], simulated=False)
    file = str(tmp_path / "labels.jsonl")
    out = runner.invoke(cli.app, ["labels", "export", "runs/try", file, "--database", one, "--json"])
    back = runner.invoke(cli.app, ["labels", "import", f"{tmp_path}/runs/try", file, "--database", two, "--json"])
    again = runner.invoke(cli.app, ["labels", "import", "runs/try", file, "--database", two, "--json"])
    assert json.loads(out.stdout).items() >= {"comparisons": 1, "judgments": 1}.items()
    assert (json.loads(back.stdout), json.loads(again.stdout)) == ({"judgments": 1}, {"judgments": 0})
    with open_store(two) as store:
        assert store.judgments("runs/try/label") == [judgment]


def test_a_report_of_nothing_is_one_line(tmp_path: Path) -> None:
    done = runner.invoke(cli.app, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"prefloop: {tmp_path} holds no stage")


def test_a_report_is_written_from_what_a_run_holds(tmp_path: Path) -> None:
    folder = tmp_path / "try" / "sft"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "result.json").write_text('{"seconds": 90}', encoding="utf-8")
    done = runner.invoke(cli.app, ["report", str(tmp_path / "try")])
    assert "1.5 minutes" in done.stdout
    assert (tmp_path / "try" / "report.html").exists()
