"""Templates and text: what users and models write never becomes a special token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.chat import closing_token, decode, encode_prompt, encode_text
from prefloop.models.tiny import CHATML, SPECIAL_TOKENS, tiny_tokenizer
from prefloop.types import Message, PrefloopError

TOKENIZER = tiny_tokenizer()
START, END = 256, 257
PIECES = st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=8)), max_size=5).map("".join)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def with_template(template: str | None) -> Any:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def as_bytes(tokens: tuple[int, ...]) -> str:
    """Text of tokens, special ones as <n>."""
    return "".join(f"<{t}>" if t >= 256 else decode(TOKENIZER, [t]) for t in tokens)


def test_a_prompt_is_rendered_by_the_template_and_waits_for_the_assistant() -> None:
    messages = [Message(role="system", content="Be brief."), user("Hi"), Message(role="assistant", content="Yes?")]
    assert as_bytes(encode_prompt(TOKENIZER, [*messages, user("Bye")])) == (
        "<256>system\nBe brief.<257>\n<256>user\nHi<257>\n<256>assistant\nYes?<257>\n"
        "<256>user\nBye<257>\n<256>assistant\n"
    )


@given(PIECES)
def test_special_tokens_in_an_answer_stay_text(text: str) -> None:
    tokens = encode_text(TOKENIZER, text)
    assert len(tokens) == len(text.encode()) and all(token < 256 for token in tokens)
    assert decode(TOKENIZER, tokens) == text


@given(st.lists(PIECES, min_size=1, max_size=3))
def test_special_tokens_in_a_prompt_stay_text(texts: list[str]) -> None:
    tokens = encode_prompt(TOKENIZER, [user(text) for text in texts])
    assert [token for token in tokens if token >= 256] == [START, END] * len(texts) + [START]
    assert decode(TOKENIZER, tokens) == "".join(f"user\n{text}\n" for text in texts) + "assistant\n"


def test_the_closing_token_is_the_stop_that_the_template_writes_after_an_answer() -> None:
    assert closing_token(TOKENIZER, {START, END}) == END
    assert closing_token(TOKENIZER, {258}) is None and closing_token(with_template(None), {END}) is None
    assert closing_token(with_template("{{ messages[-1].content }}"), {END}) is None


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert decode(TOKENIZER, encode_text(TOKENIZER, "a\ud800é")) == "a\ufffdé"
    assert "hi \ufffd" in decode(TOKENIZER, encode_prompt(TOKENIZER, [user("hi \ud800")]))
    assert "<257> \ufffd" not in decode(TOKENIZER, encode_prompt(TOKENIZER, [user("<|im_end|> \ud800")]))


def test_special_tokens_that_have_no_role_stay_text_too() -> None:
    """A vocabulary often has more of them than bos, eos, pad and unk: those of its pre-training."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens(["<repo_name>"])
    assert "<repo_name>" not in tokenizer.all_special_tokens
    assert tokenizer("<repo_name>")["input_ids"] == [259]
    assert max(encode_text(tokenizer, "a <repo_name> b")) < 256
    tokens = encode_prompt(tokenizer, [user("a <repo_name> b")])
    assert [token for token in tokens if token >= 256] == [START, END, START]
    assert decode(tokenizer, tokens) == "user\na <repo_name> b\nassistant\n"


def test_a_template_that_trims_is_followed() -> None:
    trims = CHATML.replace("message['content']", "message['content'] | trim")
    plain, odd = encode_prompt(with_template(trims), [user("  Hi  ")]), user(" <|im_end|> Hi ")
    assert as_bytes(plain) == "<256>user\nHi<257>\n<256>assistant\n"
    tokens = encode_prompt(with_template(trims), [odd])
    assert decode(TOKENIZER, tokens) == "user\n<|im_end|> Hi\nassistant\n"
    assert sum(token >= 256 for token in tokens) == 3


def test_a_template_that_rewrites_messages_and_text_like_a_special_token_cannot_be_told_apart() -> None:
    shouts = with_template(CHATML.replace("message['content']", "message['content'] | upper"))
    assert decode(TOKENIZER, encode_prompt(shouts, [user("Hi")])) == "user\nHI\nassistant\n"
    with pytest.raises(PrefloopError, match="template rewrites messages"):
        encode_prompt(shouts, [user("Hi <|im_end|>")])


def test_prompts_that_cannot_be_rendered() -> None:
    with pytest.raises(PrefloopError, match="without messages"):
        encode_prompt(TOKENIZER, [])
    with pytest.raises(PrefloopError, match="no chat template"):
        encode_prompt(with_template(None), [user("Hi")])


def test_decode_leaves_special_tokens_out_and_spaces_alone() -> None:
    assert decode(TOKENIZER, (START, *encode_text(TOKENIZER, " a , b ."), END)) == " a , b ."
