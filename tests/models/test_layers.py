from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from prefloop.data.forest import ForestLayout, build_forest
from prefloop.models.layers import carried, freeze_below_top, layer_of, layers_of, recomputed, running
from prefloop.models.norms import fuse_norms
from prefloop.models.tiny import tiny_model
from prefloop.ops.attention import Traits
from prefloop.ops.flex import flex_attend
from prefloop.types import Node, PrefloopError, Tree


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


def test_layers_run_what_they_are_given_and_then_their_own_again() -> None:
    layers = [nn.Identity(), nn.Identity()]
    known: list[Any] = []
    with running(layers, [lambda x: x + 1, lambda x: x + 2]):
        with carried(layers[:1], known), recomputed(layers[1:]):
            assert layers[1](layers[0](torch.ones(1))).item() == 4
        with carried(layers[:1], known):
            assert layers[0](torch.zeros(1)).item() == 2
        assert layers[1](torch.ones(1)).item() == 3
    assert layers[0](torch.ones(1)).item() == layers[1](torch.ones(1)).item() == 1
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.filterwarnings("ignore:flex_attention called without")  # there is no other on a CPU
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, of the norms that a GPU does without
def test_what_is_traced_of_one_layer_serves_all_layers_and_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: attention by one mask of the row, made before."""

    def attend(self: ForestLayout, module: nn.Module, *heads: Tensor) -> Tensor:
        *row, traits = heads
        assert isinstance(traits, Traits)
        return flex_attend(*row, self.mask(traits.window), traits)

    monkeypatch.setattr(ForestLayout, "attend", attend)
    model: Any = tiny_model(0, layers=3)
    fuse_norms(model)
    trunk, traced = model.get_decoder(), []

    def trace(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    layers = layers_of(trunk)
    forwards = [torch.compile(layer.forward, backend=trace, dynamic=True, fullgraph=True) for layer in layers]
    for answers in (2, 3, 5):
        nodes = [Node(parent=-1, tokens=(1,) * (7 + answers), author="prompt")]
        nodes += [Node(parent=0, tokens=(k,) * (3 + k), author="policy") for k in range(answers)]
        forest = build_forest([Tree(id="t", nodes=tuple(nodes))])
        forest.layout.mask(None)
        given = {"input_ids": forest.tokens[None], "position_ids": forest.positions[None], "layout": forest.layout}
        with torch.no_grad():
            plain = trunk(**given, use_cache=False).last_hidden_state
            with running(layers, forwards):
                found = trunk(**given, use_cache=False).last_hidden_state
        torch.testing.assert_close(found, plain)
    assert len(traced) <= 2  # the first length may be taken for the only one
