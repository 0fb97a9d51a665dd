import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from prefloop.models.layers import freeze_below_top, layer_of
from prefloop.types import PrefloopError


def make() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=3, vocab_size=11, n_positions=16))


def test_nothing_below_the_top_layers_trains_positions_included() -> None:
    model = make()
    freeze_below_top(model, 1)
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {layer_of(name) for name in training} == {2, None}
    assert {name for name in training if layer_of(name) is None} == {"transformer.ln_f.weight", "transformer.ln_f.bias"}


def test_more_layers_than_there_are_is_an_error() -> None:
    model = make()
    freeze_below_top(model, 3)
    with pytest.raises(PrefloopError, match="last_layers is 4, but this model has 3 layers"):
        freeze_below_top(model, 4)
