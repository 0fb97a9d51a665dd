import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefloop.evals.report import build_report

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "recompute.py"
FakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recompute", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reported(fake_run: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fake_run(tmp_path_factory.mktemp("reported") / "r")
    build_report(root)
    return root


@pytest.fixture
def root(reported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reported, tmp_path / "r"))


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_honest_report_holds_without_results(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for result in root.rglob("result.json"):
        result.unlink()
    assert script.main([str(root), "--json"]) == 0
    printed = answer(capsys)
    assert printed["holds"] and printed["differences"] == []
    assert {"win_rate", "kl_last_third", "rm_ceiling", "slices", "control_shuffled_labels"} <= printed["figures"].keys()


@pytest.mark.parametrize("key", ["win_rate_low", "kl_last_third", "rm_accuracy"])
def test_changed_figure_is_found(script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    report = json.loads((root / "report.json").read_text())
    report[key] += 1e-8
    (root / "report.json").write_text(json.dumps(report))
    assert script.main([str(root)]) == 1
    (difference,) = answer(capsys)["differences"]
    assert difference.startswith(f"{key}: reported")


def change_lines(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_scores_that_the_rubric_does_not_give_are_found(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = root / "evaluate" / "samples.jsonl"
    change_lines(samples, lambda row: row.update(score=float(row["model"] == "policy")))
    assert build_report(root)["win_rate"] == 1.0
    assert script.main([str(root)]) == 1
    assert any(d.startswith("win_rate: reported 1.0") for d in answer(capsys)["differences"])


def test_labels_that_differ_from_the_held_out_ones_are_found(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_lines(root / "reward" / "samples.jsonl", lambda row: row.update(target=0.9))
    build_report(root)
    assert script.main([str(root)]) == 1
    assert "no label has its target" in answer(capsys)["differences"][0]


def test_no_report(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(tmp_path)]) == 1
    assert "report.json" in answer(capsys)["differences"][0]
