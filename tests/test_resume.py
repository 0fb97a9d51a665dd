"""Kill -9 at bad moments changes nothing, and the check that says so can fail."""

import importlib.util
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults" / "resume.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))  # as for a script that runs there
    spec = importlib.util.spec_from_file_location("resume", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["resume"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_kills_change_nothing(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    status = script.main(["--kills", "4", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert status == 0, answer
    assert answer["kills"] >= 4
    assert answer["damaged"] >= 1
    assert all(answer["hit"][point] for point in ("sft", "rollout", "save"))
    assert (answer["lost"], answer["doubled"], answer["differing"], answer["damaged_accepted"]) == (0, 0, 0, 0)


def make_run(root: Path) -> Path:
    for stage in ("sft", "ppo"):
        (root / stage / "checkpoint").mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss/train": step / 3, "time/step": 0.1}) + "\n" for step in range(3)]
        (root / stage / "metrics.jsonl").write_text("".join(lines))
        save_file({"w": torch.tensor([1.0, 2.0]), "gain": torch.tensor(0.0)}, root / stage / "checkpoint/m.safetensors")
    return root


def test_every_kind_of_harm_is_counted(script: ModuleType, tmp_path: Path) -> None:
    ours = make_run(tmp_path / "ours")
    theirs = Path(shutil.copytree(ours, tmp_path / "theirs"))
    same = script.Found()
    slower = (theirs / "sft/metrics.jsonl").read_text().replace("0.1}", "0.2}")
    (theirs / "sft/metrics.jsonl").write_text(slower)
    script.compare(ours, theirs, same)
    assert same.clean
    lines = slower.splitlines(keepends=True)
    (theirs / "sft/metrics.jsonl").write_text("".join([lines[0], lines[0], lines[2].replace("0.66", "0.67")]))
    save_file({"w": torch.tensor([1.0, 2.0]), "gain": torch.tensor(-0.0)}, theirs / "ppo/checkpoint/m.safetensors")
    (theirs / "sft/checkpoint/m.safetensors").unlink()
    found = script.Found()
    script.compare(ours, theirs, found)
    assert (found.lost, found.doubled, found.differing) == (1 + 2, 1, 1 + 1)
    assert not found.clean


def test_the_points_hit_least_come_next(script: ModuleType) -> None:
    assert script.points_left(2, Counter()) == ["sft", "rollout"]
    assert script.points_left(9, Counter(sft=1)) == ["sft", "rollout", "save", "any"]
    assert script.points_left(5, Counter(sft=2, any=2)) == ["rollout", "save"]
    assert script.points_left(3, Counter(sft=1, rollout=1, save=1)) == []
