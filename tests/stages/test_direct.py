"""The direct stage by every loss: it learns what it should, says what it moved, and goes on where it was cut off."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prefloop.configs.direct import KNOBS, REFERENCE_FREE, DirectConfig
from prefloop.configs.shared import EngineConfig, LoraConfig, OptimConfig
from prefloop.data.jsonl import read_preferences, text_completion, write_jsonl
from prefloop.run import Run
from prefloop.stages import direct
from prefloop.stages.direct import displaced
from prefloop.types import Completion, Message, Preference, PrefloopError, Prompt, Verdict

ENGINE = EngineConfig(dtype="fp32", threads=1, token_budget=1500)
KEYS: dict[str, dict[str, Any]] = {
    "ipo": {"optim": OptimConfig(lr=3e-4)},
    "sppo": {"optim": OptimConfig(lr=3e-4)},
    "apo_down": {"beta": 1.0},
}


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))


def asked(index: int) -> Prompt:
    return Prompt(id=f"p{index}", messages=(Message(role="user", content=f"Say {index}"),))


def words(chance: random.Random, prompt: Prompt) -> tuple[Completion, Completion]:
    """A word with a Q in it, and one without."""
    made = ["".join(chance.choices("abcdefgh", k=chance.randint(3, 6))) for _ in range(2)]
    place = chance.randrange(len(made[0]) + 1)
    good, bad = made[0][:place] + "Q" + made[0][place:], made[1]
    return text_completion(prompt, good), text_completion(prompt, bad)


def write_marked(count: int, margin: float = 0.0) -> None:
    """People prefer the word that has a Q, wherever it stands and whichever comes first."""
    chance, made = random.Random(0), []
    for index in range(count):
        items = words(chance, asked(index))
        first = chance.random() < 0.5
        made.append(
            Preference(prompt=asked(index), items=items if first else items[::-1], target=float(first), margin=margin)
        )
    write_jsonl("marked.jsonl", made)


def write_verdicts(count: int) -> None:
    """One word a prompt, good where it has a Q."""
    chance, made = random.Random(0), []
    for index in range(count):
        good = chance.random() < 0.5
        made.append(Verdict(prompt=asked(index), completion=words(chance, asked(index))[0 if good else 1], good=good))
    write_jsonl("verdicts.jsonl", made)


def config(out: str, **rest: Any) -> DirectConfig:
    settings: dict[str, Any] = {"epochs": 2, "batch": 8, "heldout": 0.4, "engine": ENGINE, "policy": "tiny"}
    settings |= {"preferences": "marked.jsonl", "optim": OptimConfig(lr=1e-3)}
    return DirectConfig(out=out, **settings | rest)


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def plain(out: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics(out)]


@pytest.mark.parametrize("loss", KNOBS)
def test_every_loss_learns_a_preference(loss: str) -> None:
    write_marked(100)
    result = direct.run(config("run", loss=loss, **KEYS.get(loss, {})))
    rows = metrics("run")
    assert loss in REFERENCE_FREE or result["accuracy"] > 0.75
    assert rows[-1]["margin/train"] > rows[0]["margin/train"]
    assert result["displacement_chosen"] > result["displacement_rejected"] + 0.2
    assert ("logratio/chosen" in rows[0]) == (loss not in REFERENCE_FREE)
    assert rows[0]["logp/chosen"] < 0
    kept = list(Path("home/reference").iterdir())
    assert len(kept) == (1 if loss in REFERENCE_FREE else 3 if loss == "kto" else 2)


def test_kto_learns_nothing_from_shuffled_comparisons() -> None:
    write_marked(100)
    found = [direct.run(config(f"s{i}", loss="kto", shuffle_labels=True, seed=i))["accuracy"] for i in range(2)]
    assert 0.3 < sum(found) / len(found) < 0.7


def test_kto_learns_from_answers_by_themselves_and_not_from_shuffled_ones() -> None:
    write_verdicts(160)
    keys = {"loss": "kto", "preferences": "verdicts.jsonl", "lora": LoraConfig(rank=8), "optim": OptimConfig(lr=2e-2)}
    result = direct.run(config("run", **keys))
    assert result["auc"] > 0.75 and result["good_train"] + result["bad_train"] == 96
    rows = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert len(rows) == result["good_heldout"] + result["bad_heldout"] == 64
    assert metrics("run")[0]["kto/baseline"] == 0 and all(row["kto/baseline"] >= 0 for row in metrics("run"))
    wrong = [direct.run(config(f"w{i}", **keys, shuffle_labels=True, seed=i))["auc"] for i in range(2)]
    assert 0.3 < sum(wrong) / 2 < 0.7


def test_good_and_bad_answers_are_what_kto_alone_reads() -> None:
    write_verdicts(20)
    with pytest.raises(PrefloopError, match=r"are what the loss kto learns from; set direct\.loss = 'kto'"):
        direct.run(config("run", preferences="verdicts.jsonl"))
    made = [Verdict(prompt=asked(i), completion=words(random.Random(i), asked(i))[0], good=True) for i in range(6)]
    write_jsonl("verdicts.jsonl", made)
    with pytest.raises(PrefloopError, match="held-out answers are all good or all bad"):
        direct.run(config("run", loss="kto", preferences="verdicts.jsonl"))


def test_kto_says_how_to_balance_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(0)
    answers = [(asked(i), *words(chance, asked(i))) for i in range(40)]
    made = [Verdict(prompt=p, completion=bad, good=False) for p, _, bad in answers]
    made += [Verdict(prompt=p, completion=good, good=True) for p, good, _ in answers[::5]]
    write_jsonl("verdicts.jsonl", made)
    keys = {"loss": "kto", "preferences": "verdicts.jsonl", "heldout": 0.5, "epochs": 1}
    with caplog.at_level(logging.WARNING):
        result = direct.run(config("run", **keys))
    weight = result["bad_train"] / result["good_train"]
    assert f"direct.desirable = {weight:.3g} would make it 1" in caplog.text
    caplog.clear()
    direct.run(config("balanced", **keys, desirable=weight))
    assert "desirable x good" not in caplog.text


@pytest.mark.parametrize("loss", ["dpo", "ipo_norm", "simpo", "dpo_ranked", "kto"])
def test_an_interrupted_run_continues_the_same_numbers(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_marked(40)
    whole = direct.run(config("whole", loss=loss, save_every=2))
    saved = direct.save_step

    def power_fails(*arguments: Any) -> None:
        saved(*arguments)
        raise RuntimeError("power")

    monkeypatch.setattr(direct, "save_step", power_fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="power"):
            direct.run(config("broken", loss=loss, save_every=2))
    monkeypatch.setattr(direct, "save_step", saved)
    again = direct.run(config("broken", loss=loss, save_every=2))
    assert plain("whole") == plain("broken") and len(plain("whole")) == 6
    names = whole.keys() - {"checkpoint", "seconds"}
    assert {n: whole[n] for n in names} == {n: again[n] for n in names}
    tensors = [load_file(next(Path(out, "checkpoint").glob("model*.safetensors"))) for out in ("whole", "broken")]
    assert all(tensors[0][name].equal(tensors[1][name]) for name in tensors[0])


def test_losses_add_up_in_a_run() -> None:
    write_marked(30)
    direct.run(config("run", also={"nca": 0.5}, epochs=1))
    row = metrics("run")[1]
    assert row["loss/train"] == pytest.approx(row["loss/dpo"] + 0.5 * row["loss/nca"], rel=1e-5)


OWN = """
from prefloop.engine.direct_losses import Answers
from prefloop.engine.outputs import LossOut

def bounded(out, forest, totals, *, width):
    ratio, pairs = Answers.of(out, forest).ratio, forest.pairs
    lead = (2 * pairs.target - 1) * (ratio[pairs.a] - ratio[pairs.b])
    loss = -(pairs.weight * (lead / width).tanh()).sum() / totals.pairs
    return LossOut(loss, {"loss/train": loss.detach()})

def free(out, forest, totals):
    loss = -out.need("logprobs").sum() / totals.tokens
    return LossOut(loss, {"loss/train": loss.detach()})
free.reference_free = True
"""


def test_a_loss_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_direct.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    write_marked(120)
    result = direct.run(config("run", loss="own_direct:bounded", params={"width": 4.0}))
    assert result["accuracy"] > 0.75
    assert len(list(Path("home/reference").iterdir())) == 2
    direct.run(config("free", loss="own_direct:free", epochs=1))
    assert len(list(Path("home/reference").iterdir())) == 2


def test_margins_that_a_loss_cannot_use_are_not_passed_over() -> None:
    write_marked(20, margin=1.0)
    with pytest.raises(PrefloopError, match=r"carry margins, which ipo cannot use; set direct\.margins = false"):
        direct.run(config("ipo", loss="ipo"))
    direct.run(config("ipo", loss="ipo", margins=False, epochs=1))
    made = [dataclasses.replace(p, margin=0.0) for p in read_preferences("marked.jsonl")]
    direct.run(config("simpo", loss="simpo", epochs=1))
    write_jsonl("marked.jsonl", made)
    direct.run(config("wider", loss="simpo", gamma=2.0, epochs=1))
    assert metrics("simpo")[0]["loss/train"] == pytest.approx(metrics("wider")[0]["loss/train"], rel=1e-6)


def row(chosen: float, margin: float) -> dict[str, float]:
    return {"logratio/chosen": chosen, "margin/train": margin}


def test_displacement_is_the_chosen_falling_while_the_margin_grows() -> None:
    assert displaced([row(-1.0, 0.1), row(-2.0, 0.2)])
    assert not displaced([row(-2.0, 0.1), row(-1.0, 0.2)])
    assert not displaced([row(-1.0, 0.2), row(-2.0, 0.1)])
    assert not displaced([row(2.0, 0.1), row(1.0, 0.2)])
    assert not displaced([row(-1.0, 0.1)])
    assert not displaced([{"loss/train": 0.5}, {"loss/train": 0.4}])


def test_displacement_is_told_once_and_not_where_it_is_held(caplog: pytest.LogCaptureFixture) -> None:
    """Answers that share all but a letter: to push the other one down costs the chosen one (Razin et al. 2024). With
    the likelihood of the chosen beside the loss it rises."""
    made = []
    for i in range(60):
        items = tuple(text_completion(asked(i), text) for text in ("aaaaaaaaaaaQ", "aaaaaaaaaaaR"))
        made.append(Preference(prompt=asked(i), items=items, target=1.0))
    write_jsonl("marked.jsonl", made)
    found = {}
    for name, keys in (("plain", {"loss": "apo_down", "beta": 1.0}), ("held", {"nll": 1.0})):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found[name] = direct.run(config(name, epochs=5, **keys))["displacement_chosen"]
        assert caplog.text.count("likelihood displacement") == (name == "plain")
    assert found["plain"] < 0 < found["held"]


def test_a_run_says_what_its_keys_were() -> None:
    write_marked(20)
    direct.run(config("run", loss="simpo", epochs=1))
    kept = json.loads(Path("run/config.json").read_text())
    assert (kept["beta"], kept["gamma"], kept["nll"], kept["length_penalty"]) == (2.0, 1.0, 0.0, None)
    assert Run.open("run", config("run", loss="simpo", epochs=1), stage="direct", parents={}).close() is None
