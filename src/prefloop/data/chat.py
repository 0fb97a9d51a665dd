"""The only place that renders a chat template and turns text into tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from prefloop.types import Message, PrefloopError

Tokenizer = Any  # transformers' own classes stay behind models/load.py


def encode_text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Tokens of text from users or models: what looks like a special token in it stays text.

    A lone surrogate, which no tokenizer takes, becomes U+FFFD.
    """
    return tuple(tokenizer(sound(text), add_special_tokens=False, split_special_tokens=True)["input_ids"])


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[int, ...]:
    """Tokens of a conversation that waits for the assistant, by the model's own chat template.

    Raises PrefloopError when there is no template, or when a message holds the text of a special token and the
    template rewrites contents, so that template and text cannot be told apart.
    """
    if not messages:
        raise PrefloopError("A prompt without messages cannot be rendered; give it at least one message.")
    messages = [dataclasses.replace(message, content=sound(message.content)) for message in messages]
    rendered = _render(tokenizer, messages)
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(token in message.content for message in messages for token in specials):
        return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return _encode_pieces(tokenizer, messages, rendered)


def sound(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no tokenizer and no encoding takes."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def closing_token(tokenizer: Tokenizer, stops: AbstractSet[int]) -> int | None:
    """The stop token that the chat template writes first after an answer; None where it writes none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    mark = "\ue000"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
    after = rendered.rpartition(mark)[2]
    tokens = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return next((token for token in tokens if token in stops), None)


def _encode_pieces(tokenizer: Tokenizer, messages: Sequence[Message], rendered: str) -> tuple[int, ...]:
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    skeleton = _render(tokenizer, [Message(role=m.role, content=k) for m, k in zip(messages, marks, strict=True)])
    tokens: list[int] = []
    rebuilt = ""
    for mark, message in zip(marks, messages, strict=True):
        before, found, skeleton = skeleton.partition(mark)
        text = message.content if before + message.content in rendered else message.content.strip()
        if not found:
            break
        tokens += tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
        tokens += encode_text(tokenizer, text)
        rebuilt += before + text
    if rebuilt + skeleton != rendered:
        raise PrefloopError(
            "A message holds the text of a special token and this model's chat template rewrites messages; "
            "remove the special token's text from the message."
        )
    tokens += tokenizer(skeleton, add_special_tokens=False)["input_ids"] if skeleton else []
    return tuple(tokens)


def _render(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise PrefloopError(
            "This model's tokenizer has no chat template; take an instruct model, or set chat_template in its "
            "tokenizer_config.json."
        )
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of tokens without special tokens, byte for byte otherwise."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
