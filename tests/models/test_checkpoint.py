from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefloop.models.checkpoint import (
    latest_checkpoint,
    load_head,
    load_members,
    load_state,
    load_training,
    read_checkpoint,
    save_checkpoint,
)
from prefloop.models.heads import reward_head
from prefloop.models.load import load_model
from prefloop.models.lora import adapter_parameters, attach, merged_state
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import Checkpoint, PrefloopError

RECORD = Checkpoint(
    path="", kind="reward", step=7, parent="base", config_hash="c0ffee", details={"base": "ab", "head": {"gain": 2.0}}
)
TRAINING = {"exp_avg.weight": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3), "m": torch.ones(2, 3).T}
STATE = {"beta": 0.05, "rng": [1, 2], "seen": {"prompts": 4}, "best": None}


def _save(folder: Path, seed: int = 0) -> Checkpoint:
    return save_checkpoint(
        folder,
        record=RECORD,
        model=tiny_model(seed, layers=1, width=16),
        tokenizer=tiny_tokenizer(),
        head=reward_head(16, seed=0),
        members=[reward_head(16, seed=1), reward_head(16, seed=2)],
        training=TRAINING,
        state=STATE,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "step-000007"
    assert _save(folder).path == str(folder)
    return folder


def test_everything_comes_back_as_it_was(saved: Path) -> None:
    record = read_checkpoint(saved, verify=True)
    assert record.path == str(saved)
    assert (record.kind, record.step, record.parent, record.config_hash) == ("reward", 7, "base", "c0ffee")
    assert record.details == RECORD.details
    assert torch.equal(load_head(saved).weight, reward_head(16, seed=0).weight)
    members = load_members(saved)
    assert [m.weight.tolist() for m in members] == [reward_head(16, seed=i).weight.tolist() for i in (1, 2)]
    training = load_training(saved)
    assert set(training) == set(TRAINING)
    assert all(torch.equal(training[name], TRAINING[name]) for name in TRAINING)
    assert load_state(saved) == STATE
    loaded = load_model(str(saved), dtype=torch.float32)
    expected = tiny_model(layers=1, width=16).state_dict()
    assert all(torch.equal(loaded.model.state_dict()[name], expected[name]) for name in expected)
    assert loaded.tokenizer("é<|im_end|>")["input_ids"] == tiny_tokenizer()("é<|im_end|>")["input_ids"]
    assert loaded.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_nothing_else_is_left_beside_it_and_no_file_is_a_pickle(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert {path.suffix for path in saved.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_a_policy_has_no_head_and_optional_parts_are_empty(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "p", record=RECORD, model=tiny_model(layers=1, width=16), tokenizer=tiny_tokenizer())
    assert load_training(tmp_path / "p") == {} and load_state(tmp_path / "p") == {}
    with pytest.raises(PrefloopError, match="not a reward model's"):
        load_head(tmp_path / "p")
    assert load_members(tmp_path / "p") == []


def test_adapters_are_written_merged_and_can_be_resumed(tmp_path: Path) -> None:
    model = tiny_model(layers=1, width=16)
    attach(model, rank=2, alpha=4.0, seed=0)
    for parameter in adapter_parameters(model).values():
        parameter.data.fill_(0.1)
    merged, adapters = merged_state(model), adapter_parameters(model)
    save_checkpoint(tmp_path / "p", record=RECORD, model=model, tokenizer=tiny_tokenizer(), training=adapters)
    loaded = load_model(str(tmp_path / "p"), dtype=torch.float32).model.state_dict()
    assert all(torch.equal(loaded[name], merged[name]) for name in merged)
    assert set(loaded) == set(merged)
    training = load_training(tmp_path / "p")
    assert all(torch.equal(training[name], adapters[name]) for name in adapters)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_is_accepted(saved: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(saved.iterdir())))
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        if file.name == "prefloop.json" and chr(whole[place]).isspace():
            return  # white space of the manifest carries nothing
        with pytest.raises(PrefloopError, match=r"damaged|format"):
            read_checkpoint(saved, verify=True)
    finally:
        file.write_bytes(whole)


def test_missing_and_cut_files_are_found_without_hashing(tmp_path: Path) -> None:
    _save(tmp_path / "s")
    weights = tmp_path / "s" / "training.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PrefloopError, match=r"training\.safetensors has bytes"):
        load_state(tmp_path / "s")
    weights.unlink()
    with pytest.raises(PrefloopError, match="is missing"):
        load_training(tmp_path / "s")


def test_what_is_no_checkpoint_says_so(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(PrefloopError, match="not a checkpoint"):
        read_checkpoint(tmp_path)
    manifest = json.loads((saved / "prefloop.json").read_text())
    (tmp_path / "prefloop.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(PrefloopError, match="format 99"):
        read_checkpoint(tmp_path)


def test_latest_is_the_highest_that_verifies(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
    for step in (2, 10, 30):
        _save(tmp_path / f"step-{step:06d}")
    (tmp_path / "step-000040.tmp-123").mkdir()
    (tmp_path / "step-000050").mkdir()
    (tmp_path / "notes.txt").write_text("step-000099")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000030"
    weights = tmp_path / "step-000030" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000010"


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    _save(tmp_path / "s")
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(
            tmp_path / "s",
            record=RECORD,
            model=tiny_model(9, layers=1, width=16),
            tokenizer=tiny_tokenizer(),
            state={"beta": float("nan")},
        )
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert load_state(tmp_path / "s") == STATE and read_checkpoint(tmp_path / "s", verify=True).step == 7


def test_files_in_subfolders_are_sealed_too(tmp_path: Path) -> None:
    """A tokenizer with several chat templates brings a folder of them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages[0].content }}"}
    folder = tmp_path / "final"
    save_checkpoint(folder, record=RECORD, model=tiny_model(0, layers=1, width=16), tokenizer=tokenizer)
    (extra,) = (folder / "additional_chat_templates").iterdir()
    assert read_checkpoint(folder, verify=True).path == str(folder)
    extra.write_text("other")
    with pytest.raises(PrefloopError, match="damaged: additional_chat_templates"):
        read_checkpoint(folder, verify=True)


def test_saving_again_replaces(tmp_path: Path) -> None:
    _save(tmp_path / "s")
    _save(tmp_path / "s", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    loaded = load_model(str(tmp_path / "s"), dtype=torch.float32).model.state_dict()
    assert torch.equal(loaded["model.norm.weight"], tiny_model(1, layers=1, width=16).state_dict()["model.norm.weight"])
    assert torch.equal(loaded["lm_head.weight"], tiny_model(1, layers=1, width=16).state_dict()["lm_head.weight"])
