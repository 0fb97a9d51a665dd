"""The command line: quick to start, complete in its help, one line for what a user can mend."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import prefloop
from prefloop import cli
from prefloop.configs.campaign import CampaignConfig
from prefloop.configs.describe import stage_keys
from prefloop.configs.pipeline import STAGES
from prefloop.store import db
from prefloop.store.campaigns import Campaigns
from prefloop.store.clock import Clock
from prefloop.store.exchange import export
from prefloop.store.labels import open_store
from prefloop.store.private import workspace_key
from prefloop.types import Comparison, Completion, Judgment, Message, PrefloopError, Prompt, Sampling

runner = CliRunner()


def words(stage: str) -> list[str]:
    """A stage on the command line: evaluate_reward is `evaluate reward`."""
    return stage.split("_")


def test_help_loads_nothing_heavy() -> None:
    code = """if True:
        import sys
        from prefloop.cli import app
        app(["--help"], standalone_mode=False)
        print([m for m in ("torch", "transformers", "pydantic", "sqlalchemy", "rich") if m in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(words(stage)[0] in done.stdout for stage in STAGES)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_packages() -> None:
    assert runner.invoke(cli.app, ["--version"]).stdout == prefloop.__version__ + "\n"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stages_help_lists_every_key(stage: str) -> None:
    text = runner.invoke(cli.app, [*words(stage), "--help"]).stdout
    shown = text.split()
    assert cli.STAGE_HELP[stage] in " ".join(shown)
    assert f"[{stage}]" in shown
    for key in stage_keys(stage):
        assert key.name in shown
        assert key.help.split()[0] in shown


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


@pytest.mark.parametrize("command", ["run", *sorted(STAGES), "evaluate_policy"])
def test_a_mistake_is_one_line_and_one_json_object(command: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "try"\n', encoding="utf-8")
    line = [*words(command), str(recipe), "--set", "ppo.kl.targte=4"]
    plain, as_json = runner.invoke(cli.app, line), runner.invoke(cli.app, [*line, "--json"])
    assert (plain.exit_code, as_json.exit_code) == (1, 1)
    error = f"prefloop: {recipe}: unknown key 'targte' in [ppo.kl]; the nearest known one is 'target'.\n"
    assert (plain.stdout, plain.stderr) == ("", error)
    assert as_json.stderr == error
    assert "prefloop: " + json.loads(as_json.stdout)["error"] + "\n" == error


def test_an_interrupt_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Mapping[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        cli.finish(work, as_json=True)
    out, err = capsys.readouterr()
    assert caught.value.exit_code == 130
    assert err == "prefloop: stopped; the same command continues\n"
    assert json.loads(out) == {"error": "stopped; the same command continues"}


def test_a_disk_that_refuses_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as ended:
        cli.finish(lambda: {"text": tmp_path.read_text()}, as_json=True)
    said, also = capsys.readouterr()
    assert ended.value.exit_code == 1 and also == f"prefloop: {json.loads(said)['error']}\n"
    assert also == f"prefloop: {tmp_path}: Is a directory; look at its permissions and the disk.\n"


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


def labels(*words: object) -> tuple[int, dict[str, Any], str]:
    done = runner.invoke(cli.app, ["labels", *map(str, words), "--json"])
    return done.exit_code, json.loads(done.stdout), done.stderr


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a store with one judgment."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/one.db"
    prompt = Prompt(id="p", messages=(Message(role="user", content="Which?"),))
    with open_store(url) as store:
        store.add_comparisons("runs/try/label", [Comparison(id="c", prompt=prompt, items=(answer("a"), answer("b")))])
        judgment = Judgment(comparison_id="c", annotator="Ada", ranking=(1, 0))
        store.add_judgments("runs/try/label", [judgment], simulated=False)
    return url


def test_labels_go_out_and_come_back(tmp_path: Path, one: str) -> None:
    two, file = f"sqlite:///{tmp_path}/two.db", tmp_path / "labels.jsonl"
    assert labels("export", "runs/try", file, "--database", one)[1].items() >= {"comparisons": 1, "labels": 1}.items()
    back = labels("import", f"{tmp_path}/runs/try", file, "--database", two)[1]
    again = labels("import", "runs/try/label", file, "--database", two)[1]
    assert (back["labels"], back["known_labels"], again["labels"], again["known_labels"]) == (1, 0, 0, 1)
    with open_store(two) as store, open_store(one) as first:
        assert store.judgments("runs/try/label") == first.judgments("runs/try/label")
    for name, format in (("f", ""), ("a.parquet", ""), ("a.csv", ""), ("p.jsonl", "preferences")):
        code, done, _ = labels("export", "runs/try", tmp_path / name, "--format", format, "--database", one)
        assert (code, done["rows"]) == (0, 1)


def test_names_become_pseudonyms_by_a_key(tmp_path: Path, one: str) -> None:
    key, file = tmp_path / "key", tmp_path / "labels.jsonl"
    words = ("export", "runs/try", file, "--database", one, "--pseudonyms", key)
    assert "cannot be read" in labels(*words)[1]["error"]
    key.write_bytes(b"short")
    assert "a key needs at least 16 bytes" in labels(*words)[1]["error"]
    key.write_bytes(b"0123456789abcdef")
    assert labels(*words)[0] == 0
    assert b"Ada" not in file.read_bytes()
    back = ("import", "runs/try", file, "--database", one)
    assert "is a pseudonym of somebody whose labels are here already" in labels(*back)[1]["error"]
    with open_store(one) as store:
        export(store, "runs/try/label", file, key=workspace_key(tmp_path))
    done = labels(*back)[1]
    assert (done["labels"], done["known_labels"]) == (0, 1)


def test_other_peoples_answers_go_into_a_campaign_of_any_name(tmp_path: Path, one: str) -> None:
    engine = db.connect(one)
    Campaigns(engine, Clock()).create("which is kinder?", CampaignConfig(), by="me")
    engine.dispose()
    rows = [{"prompt": "Hi", "answers": ["a", "b", "c"]}, {"prompt": "Bye", "answers": ["a"]}, {"x": 1}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    words = ("import", "which is kinder?", tmp_path / "a.json", "--database", one)
    assert "a.json:3: unknown layout" in labels(*words)[1]["error"]
    done = labels(*words, "--skip-bad", "--ways", 3)[1]
    assert (done["items"], done["alone"], done["skipped"]) == (1, 1, 1)
    with open_store(one) as store:
        assert [len(c.items) for c in store.comparisons("which is kinder?")] == [3]


def test_tampering_is_one_sentence_and_status_1(tmp_path: Path, one: str) -> None:
    code, done, _ = labels("verify", "--database", one)
    assert (code, done["judgments"]) == (0, 1)
    assert len(done["head"]) == 64
    with sqlite3.connect(tmp_path / "one.db") as connection:
        connection.execute("UPDATE judgments SET content = replace(content, '[1, 0]', '[0, 1]')")
    connection.close()
    code, done, said = labels("verify", "--database", one)
    assert code == 1
    assert "are not those that were logged" in done["error"]
    assert said == f"prefloop: {done['error']}\n"


def test_a_backup_is_a_database_of_its_own(tmp_path: Path, one: str, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "deep" / "copy.db"
    code, done, _ = labels("backup", file, "--database", one)
    assert (code, done["file"], done["bytes"]) == (0, str(file), file.stat().st_size)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["copy.db"]
    with open_store(f"sqlite:///{file}") as copy, open_store(one) as store:
        assert copy.judgments("runs/try/label") == store.judgments("runs/try/label")
        assert copy.verify() == store.verify()
    code, done, _ = labels("backup", file, "--database", one)
    assert (code, done["error"]) == (1, f"{file}: is there already; choose another name.")
    assert "cannot be written" in labels("backup", tmp_path / "one.db" / "x", "--database", one)[1]["error"]
    code, done, _ = labels("backup", tmp_path / "x", "--database", request.getfixturevalue("postgres_url"))
    assert code == 1
    assert "pg_dump" in done["error"]


@pytest.mark.parametrize("command", ["import", "export", "prioritise", "verify", "backup"])
def test_help_of_the_label_commands_says_what_they_take(command: str) -> None:
    done = runner.invoke(cli.app, ["labels", command, "--help"])
    words = done.stdout.split()
    assert {"--json", "--database"} <= set(words)
    options = {"import": {"--pairs", "--ways", "--seed", "--skip-bad"}, "export": {"--format", "--pseudonyms"}}
    assert options.get(command, set()) <= set(words)


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
