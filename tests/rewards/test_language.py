"""The share of words that are of the wanted language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.shared import EngineConfig
from prefloop.data.jsonl import text_completion
from prefloop.rewards.language import SCRIPTS, STOP_WORDS, share
from prefloop.rewards.resolve import resolve_reward
from prefloop.types import Message, PrefloopError, Prompt


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("The cat sat on the mat.", "en", 1.0),
        (
            "Die Katze und der Hund",
            "en",
            3 / 5,
        ),  # nouns of German look like those of English, and "die" is a verb there
        ("Die Katze und der Hund", "de", 1.0),
        ("The answer is 42, und das ist gut", "en", 4 / 7),
        ("Ответ 42", "ru", 1.0),
        ("Ответ the", "ru", 0.5),
        ("Ответ the", "en", 0.5),
        ("答案 is", "zh", 0.5),
        ("ひらがな カタカナ 漢字", "ja", 1.0),
        ("ひらがな", "zh", 0.0),
        ("人々は時々来る。", "ja", 1.0),
        ("答案是3。", "zh", 1.0),
        ("我有3只猫,dogs也有2只。", "zh", 3 / 4),  # without spaces what stands between digits is a word
        ("Çа", "fr", 0.0),  # its second letter is Cyrillic
        ("caf\u00e9 cafe\u0301", "fr", 1.0),
        ("12 3.5", "en", 0.0),
        ("", "en", 0.0),
    ],
)
def test_by_hand(text: str, wanted: str, expected: float) -> None:
    assert share(text, wanted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("en", "A plan: take a bus to a town, do it once. No one will die, so come along and pour a cup in the van."),
        ("de", "Was in der Stadt war, hast du da um acht gesehen? Er und sie sind wegen des Regens zu Hause."),
        ("fr", "On a vu son frère en ville: il y va de temps en temps. Si tu as une idée, elle se met là, non?"),
        ("es", "A mi hermana le gusta ir a la playa e ir de paseo. Dos amigos van y te da un libro; si no, come."),
        ("it", "Se non vai a casa da solo, te lo porto al mercato. No, il libro su cui studio è a scuola."),
        ("pt", "Este livro está na mesa e te espera. A casa do meu irmão, se quiser, tem um par de janelas."),
        ("nl", "Wie was er in het huis na de les? Die man had al een das los in zijn la, en hij was pas thuis."),
    ],
)
def test_plain_sentences_are_of_their_language(wanted: str, text: str) -> None:
    assert share(text, wanted) == 1.0
    assert all(share(text, other) < 0.95 for other in STOP_WORDS if other != wanted)


@given(st.sampled_from([*STOP_WORDS]), st.integers(1, 9))
def test_a_languages_frequent_words_are_its_own(wanted: str, count: int) -> None:
    text = " ".join((STOP_WORDS[wanted].split() * 9)[: 9 * count])
    assert share(text, wanted) == 1.0
    assert share(text + " да" * 9 * count, wanted) == pytest.approx(0.5)
    assert all(share(text, other) == 0.0 for other in SCRIPTS)


def test_as_a_reward_and_an_unknown_language() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Why?"),))
    reward = resolve_reward("language=de", EngineConfig())
    found = reward(
        [prompt, prompt], [text_completion(prompt, text) for text in ("Weil es so ist.", "It is what it is.")]
    )
    assert found[0].value == 1.0 and found[1].value < 0.5
    with pytest.raises(PrefloopError, match="language=xx: unknown language; take one of en, de"):
        resolve_reward("language=xx", EngineConfig())
