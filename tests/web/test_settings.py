from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.configs.campaign import CampaignConfig
from prefloop.types import PrefloopError
from prefloop.web import settings
from prefloop.web.settings import FIELDS, FormError

_NAMES = st.text(string.ascii_letters + "äöü'=-", min_size=1, max_size=20).filter(lambda name: name == name.strip())
_PERCENT = st.integers(0, 500).map(lambda thousandths: thousandths / 1000)


@st.composite
def configs(draw: Any) -> CampaignConfig:
    names = st.lists(_NAMES, unique=True, max_size=4).map(tuple)
    kinds = draw(st.lists(_NAMES, unique=True, max_size=3))
    return CampaignConfig(
        title=draw(_NAMES),
        guidelines=draw(st.text(string.printable.replace("\r", ""), max_size=50)),
        axes=draw(names) or ("overall",),
        flags=draw(names),
        rubric=draw(names),
        ties=draw(st.booleans()),
        ratings=draw(st.booleans()),
        rationale=draw(st.sampled_from(settings.RATIONALES)),
        shared_share=draw(_PERCENT),
        uniform_share=draw(st.integers(200, 1000)) / 1000,
        overlap=draw(st.integers(1, 100)),
        lease_minutes=draw(st.integers(1, 100)) / 4,
        mix={name: 1 / len(kinds) for name in kinds},
    )


@given(configs())
def test_a_form_says_what_the_configuration_does(config: CampaignConfig) -> None:
    assert settings.read(settings.shown(config)) == config


def test_every_setting_is_in_the_form_and_explained() -> None:
    assert set(FIELDS) == set(CampaignConfig.model_fields)
    assert all(field.hint for field in FIELDS.values())


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("title", "", "Something must stand here."),
        ("title", "x" * 201, "Write at most 200 characters."),
        ("axes", " \n", "Something must stand here."),
        ("axes", "a\n" + "x" * 81, "Write at most 80 characters a line."),
        ("axes", "\n".join("abcdefghi"), "Name at most 8."),
        ("overlap", "0", "It must be at least 1."),
        ("overlap", "101", "It must be at most 100."),
        ("overlap", "two", "Write a whole number."),
        ("overlap", "1.5", "Write a whole number."),
        ("overlap", "9" * 5000, "Write a whole number."),
        ("shared_share", "60", "It must be at most 50 %."),
        ("shared_share", "many", "Write a number of percent."),
        ("shared_share", "1e999", "Write a number."),
        ("shared_share", "nan", "Write a number."),
        ("uniform_share", "10", "It must be at least 20 %."),
        ("lease_minutes", "0", "It must be above 0."),
        ("lease_minutes", "soon", "Write a number."),
        ("rationale", "maybe", "Choose 'off', 'optional' or 'required'."),
        ("mix", "hard", "Write one kind a line with its share in percent, such as: hard = 30."),
        ("mix", "hard = 50\nhard = 50", "hard stands there twice; name each kind once."),
        ("mix", "hard = 0\neasy = 100", "It must be above 0 %."),
    ],
)
def test_what_does_not_fit_is_said_at_its_field(name: str, text: str, sentence: str) -> None:
    with pytest.raises(FormError) as caught:
        settings.read(settings.shown(CampaignConfig()) | {name: text})
    assert caught.value.fields == {name: sentence}


def test_all_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(FormError) as caught:
        settings.read(settings.shown(CampaignConfig()) | {"overlap": "0", "gold_share": "x", "axes": "same\nsame"})
    assert set(caught.value.fields) >= {"overlap", "gold_share"}
    for typed in ({"axes": "same\nsame"}, {"mix": "easy = 40\nhard = 40"}):
        with pytest.raises(FormError) as caught:
            settings.read(settings.shown(CampaignConfig()) | typed)
        assert set(caught.value.fields) == {""}


def test_the_flag_that_is_always_there_cannot_be_listed() -> None:
    """Marked on an answer of a conversation it would be a judgment that says nothing."""
    with pytest.raises(FormError) as caught:
        settings.read(settings.shown(CampaignConfig()) | {"flags": "unsafe\ncan't judge"})
    assert caught.value.fields == {"": 'Flags names "can\'t judge", which is always there; leave it out.'}


def test_an_empty_form_says_what_is_missing_and_breaks_nothing() -> None:
    with pytest.raises(FormError) as caught:
        settings.read({})
    assert {"title", "axes", "overlap"} <= set(caught.value.fields)


@pytest.mark.parametrize("name", ["helpful-2", "runs/quickstart/label", "A.b_c"])
def test_names_of_runs(name: str) -> None:
    assert settings.read_run(f" {name} ") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "a/../b",
        "/etc",
        "a//b",
        "a\\b",
        "a\0b",
        "a b",
        "a/",
        "%2e%2e",
        "ä",
        "x" * 121,
        "a\r\nset-cookie: b",
        ".a",
    ],
)
def test_line_19_no_name_of_a_campaign_leads_anywhere(name: str) -> None:
    with pytest.raises(PrefloopError, match="letters, digits"):
        settings.read_run(name)
