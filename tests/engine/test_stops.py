"""Stop strings, stop tokens and limits of each request, on a model whose weights, set by hand, write a known text."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from prefloop.data.trees import Encoder
from prefloop.engine.generate import LocalSampler
from prefloop.engine.verbs import Request
from prefloop.models.load import LoadedModel
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import Completion, FinishReason, PrefloopError, Sampling, from_json, to_json

TOKENIZER = tiny_tokenizer()
TEXT = "xé€STOP!"  # é has two tokens, € three
TOKENS = tuple(TOKENIZER(TEXT)["input_ids"])
START = 65
ENCODER = Encoder(TOKENIZER, 257, 2048)


def scripted() -> LocalSampler:
    """START, then TEXT, then the model's stop token: embeddings tell tokens apart, the head knows what follows each."""
    model = tiny_model(0, width=272)
    script = (START, *TOKENS, 257)
    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[union-attr]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_input_embeddings().weight.copy_(torch.eye(259, 272))
        head = torch.zeros(259, 272)
        for token, following in itertools.pairwise(script):
            head[following, token] = 1.0
        model.lm_head.weight = torch.nn.Parameter(head)  # type: ignore[union-attr]
    assert len(set(script)) == len(script)
    return LocalSampler(LoadedModel(model, TOKENIZER, "scripted", ""), context=2048)


def request(name: str = "a", max_tokens: int = 20, stop: tuple[str, ...] = (), ids: tuple[int, ...] = ()) -> Request:
    sampling = Sampling(temperature=0.1, max_tokens=max_tokens, stop=stop, stop_tokens=ids)
    return Request(id=name, prompt_id="p", tokens=(START,), sampling=sampling, seed=0)


def write(max_tokens: int = 20, stop: tuple[str, ...] = (), ids: tuple[int, ...] = ()) -> Completion:
    (made,) = scripted().generate([request(max_tokens=max_tokens, stop=stop, ids=ids)])
    return made


@pytest.mark.parametrize(
    ("sampling", "count", "text", "reason"),
    [
        ({}, 12, TEXT, "stop"),
        ({"max_tokens": 10}, 10, "xé€STOP", "length"),
        ({"max_tokens": 2}, 2, "x\ufffd", "length"),
        ({"stop": ("OP",)}, 10, "xé€ST", "stop"),
        ({"stop": ("€",)}, 6, "xé", "stop"),
        ({"stop": ("é€S",)}, 7, "x", "stop"),
        ({"stop": ("T", "ST")}, 8, "xé€", "stop"),
        ({"stop": ("x",)}, 1, "", "stop"),
        ({"stop": ("nowhere", "STOPS")}, 12, TEXT, "stop"),
        ({"stop": ("OP",), "max_tokens": 10}, 10, "xé€ST", "stop"),
        ({"ids": (TOKENS[6],)}, 7, "xé€", "stop"),
        ({"ids": (TOKENS[6],), "stop": ("é",)}, 3, "x", "stop"),
    ],
)
def test_where_an_answer_ends(sampling: dict[str, object], count: int, text: str, reason: FinishReason) -> None:
    made = write(**sampling)  # type: ignore[arg-type]
    assert (made.tokens, made.text, made.finish_reason) == ((*TOKENS, 257)[:count], text, reason)
    assert len(made.segments[0].logprobs) == count
    assert from_json(Completion, to_json(made)) == made
    assert ENCODER.response(made) == made.tokens


def test_every_request_has_its_own_limits() -> None:
    requests = [
        request("short", 2),
        request("cut", stop=("€",)),
        request("whole"),
        request("token", ids=(TOKENS[0],)),
        request("late", stop=("!",)),
    ]
    made = {c.id: c.text for c in scripted().generate(requests)}
    assert made == {"short": "x\ufffd", "cut": "xé", "whole": TEXT, "token": "", "late": TEXT[:-1]}


def test_a_special_token_as_a_stop_string_is_refused() -> None:
    """No text holds it, so it would never end an answer."""
    with pytest.raises(PrefloopError, match=r"special token <\|im_end\|> among its stop strings"):
        write(stop=("x", "<|im_end|>\n"))


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(PrefloopError, match="'p' has an empty stop string; leave it out"):
        write(stop=("",))


def test_what_no_stop_string_explains_has_another_tokenizers_tokens() -> None:
    made = write(stop=("OP",))
    for odd in ("xé€S", "x", "", "XÉ"):
        with pytest.raises(PrefloopError, match="tokens of another tokenizer"):
            ENCODER.response(dataclasses.replace(made, text=odd))
    with pytest.raises(PrefloopError, match="tokens of another tokenizer"):
        ENCODER.response(dataclasses.replace(made, sampling=Sampling()))


def test_sampling_records_from_before_there_were_stops_are_read() -> None:
    assert from_json(Sampling, {"temperature": 0.5, "max_tokens": 3}) == Sampling(temperature=0.5, max_tokens=3)
