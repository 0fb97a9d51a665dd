"""Keys of the direct stage: each loss has its own, filled in where not set, and no key is passed over."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.configs.direct import KNOBS, REFERENCE_FREE, USE_MARGINS, DirectConfig


def config(**keys: Any) -> DirectConfig:
    return DirectConfig(out="o", **keys)


@pytest.mark.parametrize("loss", KNOBS)
def test_a_loss_gets_its_own_keys_with_its_own_defaults(loss: str) -> None:
    made = config(loss=loss)
    assert made.objective == (loss, dict(KNOBS[loss]))
    assert made.model_dump()["beta"] == KNOBS[loss]["beta"]
    assert DirectConfig.model_validate_json(made.model_dump_json(), strict=True) == made
    assert config(loss=loss, beta=0.7).objective[1]["beta"] == 0.7
    assert made.reference_free == (loss in REFERENCE_FREE)


def test_every_key_that_some_loss_does_not_read_is_refused_there() -> None:
    values = {"divergence": "forward_kl"}
    keys = {key for own in KNOBS.values() for key in own}
    for loss, own in KNOBS.items():
        for key in keys - set(own):
            with pytest.raises(ValidationError, match=f"{loss} reads no {key}, only .*; leave it out"):
                config(loss=loss, **{key: values.get(key, 0.3)})


def test_losses_on_the_same_comparisons_share_keys() -> None:
    name, params = config(loss="dpo", beta=0.3, also={"simpo": 0.5, "nca": 2.0}).objective
    assert name == "weighted"
    weights = {name: weight for name, (weight, _) in params["parts"].items()}
    assert weights == {"dpo": 1.0, "simpo": 0.5, "nca": 2.0}
    assert {own["beta"] for _, own in params["parts"].values()} == {0.3}
    assert params["parts"]["simpo"][1]["gamma"] == 1.0 and "gamma" not in params["parts"]["dpo"][1]
    for loss, also in (("dpo", {"nca": 1.0}), ("cpo", {"orpo": 0.5})):
        parts = config(loss=loss, also=also, nll=0.7).objective[1]["parts"]
        assert [own["nll"] for _, own in parts.values()] == [0.7, 0.0]
    assert not config(loss="simpo", also={"dpo": 1.0}).reference_free
    assert config(loss="simpo", also={"orpo": 1.0}).reference_free


def test_a_loss_of_your_own_takes_params() -> None:
    assert config(loss="mine:loss", params={"coef": 2}).objective == ("mine:loss", {"coef": 2.0})
    assert not config(loss="mine:loss").reference_free


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "dpp"}, "unknown loss 'dpp'; the nearest known one is 'dpo'"),
        ({"also": {"ddpo_norm": 1.0}}, "unknown loss 'ddpo_norm'"),
        ({"also": {"mine:loss": 1.0}}, "unknown loss 'mine:loss'"),
        ({"loss": "kto", "also": {"dpo": 1.0}}, "leave out kto"),
        ({"also": {"dpo": 1.0}}, "the same twice"),
        ({"loss": "mine:loss", "also": {"dpo": 1.0}}, "your own"),
        ({"params": {"coef": 1.0}}, "params are of a loss of your own"),
        ({"loss": "mine:loss", "beta": 0.1}, "mine:loss reads no beta"),
        ({"loss": "robust", "label_smoothing": 0.0}, "need a label_smoothing above 0"),
        ({"loss": "exo", "label_smoothing": 0.0}, "need a label_smoothing above 0"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"divergence_alpha": 0.3}, "leave it out or set that"),
        ({"beta": 0.0}, "greater than 0"),
        ({"beta": None}, "dpo reads beta; set it"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**keys)


def test_losses_with_margins_are_known() -> None:
    assert set(KNOBS) > USE_MARGINS and set(KNOBS) > REFERENCE_FREE
