"""Checklist of hostile content, line 7, as far as texts go: they do not tell a labeler which model wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.identity import flattened, names_a_model

TELLING = {
    "I am ChatGPT, a large language model trained by OpenAI.": "I am ChatGPT, a large language model trained by OpenAI",
    "As an AI language model developed by Meta, I cannot.": "As an AI language model developed by Meta",
    "Well, GPT-4o mini says": "GPT-4o mini",
    "asked gpt 3.5 turbo": "gpt 3.5 turbo",
    "I'm Claude, made by Anthropic": "I'm Claude",
    "I\u2019m **Claude**": "I'm Claude",
    "Claude 3.5 Sonnet wrote it": "Claude 3.5 Sonnet",
    "I am a helpful assistant trained by Anthropic": "I am a helpful assistant trained by Anthropic",
    "I was created by the team at Google": "I was created by the team at Google",
    "Meta's Llama is good": "Meta's Llama",
    "Meta-Llama-3.1-8B-Instruct": "Llama-3.1-8B-Instruct",
    "llama-3-8b": "llama-3-8b",
    "Qwen2.5-7B-Instruct says": "Qwen2.5-7B-Instruct",
    "SmolLM2-135M": "SmolLM2-135M",
    "my name is Gemini": "my name is Gemini",
    "As Gemini, I cannot": "As Gemini, I",
    "Gemini 1.5 Pro": "Gemini 1.5 Pro",
    "Mistral 7B": "Mistral 7B",
    "made at Mistral AI": "Mistral AI",
    "the Claude model": "Claude model",
    "an assistant called Gemini": "assistant called Gemini",
    "OpenAI trained me": "OpenAI trained me",
    "my creators at Anthropic": "my creators at Anthropic",
    "I'm an AI assistant from Google": "I'm an AI assistant from Google",
    "DeepSeek-R1": "DeepSeek",
    "falcon-7b": "falcon-7b",
    "phi-3-mini": "phi-3-mini",
    "G\u200bPT\u20114": "GPT-4",
    "\uff27\uff30\uff34-\uff14": "GPT-4",
    "I am _Qwen_": "Qwen",
}
HARMLESS = [
    *("The zoo has a llama and an alpaca.", "The llama family includes alpacas.", "Claude Monet painted lilies."),
    *("I am a Gemini, born in June.", "Gemini 8 flew in 1966.", "The constellation Gemini, I think.", "I'm a llama!"),
    *("The mistral blows in Provence.", "A phone made by Apple.", "I have been using a laptop designed by Apple."),
    *("phi is 1.618", "cos(phi-2)", "Falcon 9 landed.", "Press Command R.", "OpenAI is a company.", "open the gate"),
    *("As a car built by Google", "Gemma is my sister, 2 years old.", "The bard sang.", "I grok it.", "A palm family."),
    *("a meta analysis, created by me", "The model is good; the policy and the reward model too.", ""),
]
NAMES = ["runs/quickstart/ppo", "runs/quickstart/ppo-step-40", "smoltalk_v2", "model", "Nord/Wind-1B"]


@pytest.mark.parametrize(("text", "phrase"), TELLING.items())
def test_a_text_that_tells(text: str, phrase: str) -> None:
    assert names_a_model(text, []) == phrase


@pytest.mark.parametrize("text", HARMLESS)
def test_a_text_that_does_not(text: str) -> None:
    assert names_a_model(text, NAMES) is None


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("from runs/quickstart/ppo, step 3", "runs/quickstart/ppo"),
        ("I am PPO-Step-40.", "PPO-Step-40"),
        ("(smoltalk_v2)", "smoltalk_v2"),
        ("I am Wind-1B", "Wind-1B"),
        ("ppo\u2011step\u201140", "ppo-step-40"),
        ("ppo-step-401", None),
        ("xppo-step-40", None),
        ("the ppo model", None),
    ],
)
def test_names_at_hand(text: str, phrase: str | None) -> None:
    assert names_a_model(text, NAMES) == phrase


def test_the_first_phrase_is_told() -> None:
    assert names_a_model("ppo-step-40 beats GPT-4", NAMES) == "ppo-step-40"
    assert names_a_model("GPT-4 beats ppo-step-40", NAMES) == "GPT-4"


@given(st.text(), st.text(), st.sampled_from(sorted(TELLING)))
def test_it_is_found_wherever_it_stands(before: str, after: str, text: str) -> None:
    assert names_a_model(f"{before}\n{text}\n{after}", NAMES) is not None


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_asked_about(text: str) -> None:
    names_a_model(text, [text])
    assert flattened(flattened(text)) == flattened(text)
