from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefloop.data.sources import load_demonstrations, load_preferences, load_prompts
from prefloop.types import PrefloopError

PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}


def test_prompts_of_the_splits_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"{split}-{i}", "messages": [{"role": "user", "content": f"{split} {i}"}], "split": split}
        for i in range(2)
        for split in ("train", "dev", "eval")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [p.id for p in load_prompts(path, splits=("eval", "train"))] == ["train-0", "eval-0", "train-1", "eval-1"]
    assert len(load_prompts(str(path), splits=())) == 6
    with pytest.raises(PrefloopError, match="no prompt of split test; this source has dev, eval, train"):
        load_prompts(path, splits=("test",))


def test_preferences_of_a_file_and_of_a_label_run(tmp_path: Path) -> None:
    (tmp_path / "preferences.jsonl").write_text(json.dumps(PAIR))
    with pytest.raises(PrefloopError, match="no finished label run"):
        load_preferences(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert load_preferences(tmp_path) == load_preferences(tmp_path / "preferences.jsonl")
    (tmp_path / "preferences.jsonl").unlink()
    with pytest.raises(PrefloopError, match=r"preferences\.jsonl: no such file"):
        load_preferences(str(tmp_path))


def test_bad_preferences_are_skipped_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, [PAIR, PAIR | {"rejected": "a"}])))
    assert len(load_preferences(path, skip_bad=True)) == 1
    with pytest.raises(PrefloopError, match=r"pairs\.jsonl:2"):
        load_preferences(path)


def test_what_cannot_be_a_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match=r"this is a folder; give 'builtin' or a JSONL file such as prompts\.jsonl"):
        load_prompts(tmp_path)
    with pytest.raises(PrefloopError, match="this is a folder"):
        load_demonstrations(tmp_path)
    with pytest.raises(PrefloopError, match="No preferences are shipped"):
        load_preferences("builtin")
    (tmp_path / "empty.jsonl").touch()
    for load in (load_prompts, load_demonstrations, load_preferences):
        with pytest.raises(PrefloopError, match="the file is empty"):
            load(tmp_path / "empty.jsonl")


def test_the_shipped_files() -> None:
    prompts, demonstrations = load_prompts("builtin"), load_demonstrations("builtin")
    assert {prompt.split for prompt in prompts} == {"train", "dev", "eval"}
    assert {demonstration.prompt.split for demonstration in demonstrations} == {"train"}
    evaluated = {prompt.messages for prompt in load_prompts("builtin", splits=("eval",))}
    assert not evaluated & {demonstration.prompt.messages for demonstration in demonstrations}
