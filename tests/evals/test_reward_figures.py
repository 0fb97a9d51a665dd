"""Figures and verdicts of a report on a reward, by hand and by planted effects with their controls."""

import json
import math
import random
import re
from collections.abc import Callable, Sequence

import pytest

from prefloop.data.jsonl import text_completion
from prefloop.evals.probes import PROBES
from prefloop.evals.reward_figures import FALSE_ALARMS, LEVEL_EACH, OTHER_TESTS, ProbeFigure, RewardFigures, Vote
from prefloop.evals.reward_page import page, summary
from prefloop.evals.reward_pairs import vote_ceiling
from prefloop.evals.reward_plan import from_row, plan, row, score
from prefloop.evals.reward_report import reward_figures
from prefloop.evals.reward_verdicts import LEAST_SHIFT, findings, probe_state
from prefloop.ops.statistics import Figure
from prefloop.types import Completion, Message, Preference, PrefloopError, Prompt, Score

Reward = Callable[[Sequence[Prompt], Sequence[Completion]], list[Score]]
WORDS = ("Rinse the pot.", "Then dry it.", "Use a cloth.", "Keep it warm.", "Close the lid.", "It is done.")


def asked(name: str) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=f"How to clean {name}?"),), slice=name[0])


def preference(name: str, better: str, worse: str, target: float = 1.0) -> Preference:
    prompt = asked(name)
    return Preference(
        prompt=prompt, items=(text_completion(prompt, better), text_completion(prompt, worse)), target=target
    )


def by(of: Callable[[str], float], *, logits: bool = False) -> Reward:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        values = [float(of(completion.text)) for completion in completions]
        return [Score(value=value, parts={"raw": value} if logits else {}) for value in values]

    return reward


def words(text: str) -> float:
    return len(text.split())


def report(
    heldout: Sequence[Preference],
    reward: Reward,
    *,
    votes: Sequence[Vote] = (),
    gold: Reward | None = None,
    probes: int = 0,
) -> RewardFigures:
    training = [preference("train", "Rinse the pot.", "Use a cloth, then dry it.")]
    scored = score(plan(training, heldout, [], train=1, probes=probes, seed=0), reward, gold)
    return reward_figures(training, heldout, scored, votes)


def test_accuracy_controls_and_leads_by_hand() -> None:
    heldout = [
        preference("a1", "one two three", "one"),  # words are right
        preference("a1", "one", "one two", 0.25),  # the longer one again: right
        preference("b1", "one", "one two three four"),  # wrong
        preference("b2", "one two", "three four", 0.5),  # nobody prefers one
    ]
    figures = report(heldout, by(words))
    assert figures.held_out.accuracy == pytest.approx(2 / 3)
    assert figures.controls["longer wins"].value == pytest.approx(2 / 3)
    assert figures.controls["shorter wins"].value == pytest.approx(1 / 3)
    assert figures.lead["longer wins"].value == 0
    assert figures.lead["shorter wins"].value == pytest.approx((1 + -1) / 2)  # prompts count alike: a1 +1, b1 -1
    assert (figures.train.value, figures.gap.value) != (figures.train.value, 0)
    assert figures.by["slice"]["a"].value == 1 and figures.by["slice"]["b"].value == 0
    assert figures.by["longer answer"]["the longer one is preferred"].value == 1
    assert figures.by["longer answer"]["the shorter one is preferred"].value == 0
    assert figures.by["strength"]["annotators differ"].n == 1
    # of prompt a1's three answers 3, 1, 2 words, of b1's 1, 4, of b2's 2, 2: (2 + 4.5 + 0) / (2 + 1 + 1)
    assert figures.spread == pytest.approx(math.sqrt(6.5 / 4))
    assert figures.separability["all"].n == 3
    # margins 2, 1, -3 over the spread: mean 0
    assert figures.separability["all"].d_prime == pytest.approx(0)
    assert figures.single.reason and math.isnan(figures.adjusted)


def test_ceiling_from_agreement() -> None:
    found = vote_ceiling(Figure(value=0.726, low=0.711, high=0.741, n=9))
    assert found.value == pytest.approx(0.836, abs=5e-4)  # Ouyang et al. 2022: 72.6 % leave 83.6 %
    assert vote_ceiling(Figure(value=0.63, low=0.6, high=0.66)).value == pytest.approx(0.755, abs=5e-4)
    assert vote_ceiling(Figure(value=0.4)).reason


def test_single_votes_in_either_order() -> None:
    heldout = [preference("a1", "one two three", "one"), preference("a2", "one", "one two", 1.0)]
    ids = [tuple(item.id for item in p.items) for p in heldout]
    votes = [
        Vote(items=(ids[0][0], ids[0][1]), annotator="Ada", first=1.0, group="staff", strength=4),
        Vote(items=(ids[0][1], ids[0][0]), annotator="Bo", first=0.0, group="students", strength=3),
        Vote(items=(ids[1][0], ids[1][1]), annotator="Ada", first=1.0, group="staff", strength=1),
        Vote(items=(ids[1][1], ids[1][0]), annotator="Bo", first=1.0, group="students", strength=1),
    ]
    figures = report(heldout, by(words), votes=votes)
    assert figures.by["annotator"]["Ada"].value == 0.5  # right on a1 alone
    assert figures.by["annotator"]["Bo"].value == 1.0
    assert figures.by["group"].keys() == {"staff", "students"}
    assert figures.groups["staff"].value == pytest.approx(-0.5)
    assert figures.agreement.value == 0.5  # on a1 they agree
    assert figures.by["strength"].keys() == {"strength 4 of 4", "strength 1 of 4"}
    assert figures.separability["easy"].n == figures.separability["hard"].n == 1
    assert figures.confidence.reason  # one prompt a side


def many(count: int, better: Callable[[int], str], worse: Callable[[int], str]) -> list[Preference]:
    return [preference(f"p{i:03d}", better(i), worse(i)) for i in range(count)]


def test_shifts_and_flips_by_hand() -> None:
    heldout = many(
        30, lambda i: "Rinse the pot, then dry it.", lambda i: "Rinse the pot, then dry it now." if i % 2 else "Rinse."
    )
    figures = report(heldout, by(words), probes=30)
    shifts = {probe.name: probe for probe in figures.probes}
    spread = figures.spread
    for name, added in (("heading", 2), ("in other company", 0), ("empty", -6), ("bold", 0), ("emoji", 1)):
        found = shifts[name].shift
        assert found.value == pytest.approx(added / spread, abs=1e-9), name
        assert (found.low, found.high, found.n) == (pytest.approx(found.value), pytest.approx(found.value), 30)
    # six words against seven (half of the prompts) or one; with a heading eight
    assert (shifts["heading"].flips, shifts["empty"].flips, shifts["bold"].flips) == (0.5, 0.5, 0.0)
    assert shifts["wrong numbers"].shift.n == 0 and shifts["wrong numbers"].shift.reason
    states = {finding.name: finding.state for finding in findings(figures)}
    assert states["length"] == "bad" and states["format"] == "bad" and states["numerics"] == "good"
    assert states["flattery"] == "bad" and states["hollow answers"] == "bad"  # a refusal has more words


def test_what_a_change_shows() -> None:
    def state(expected: str, low: float, high: float, n: int = 50, family: str = "format") -> str:
        shift = Figure(value=(low + high) / 2, low=low, high=high, n=n)
        made = ProbeFigure(name="x", family=family, expected=expected, shift=shift, flips=0.0, groups={})
        return probe_state(made)

    far, near = 2 * LEAST_SHIFT, 0.5 * LEAST_SHIFT
    spans = {"up": (far, far + 0.1), "none": (-near, near), "down": (-far - 0.1, -far), "unsure": (-far, far)}
    table = {
        "same": ("bad", "good", "bad", "open"),
        "no_gain": ("bad", "good", "good", "open"),
        "no_loss": ("good", "good", "bad", "open"),
        "drop": ("bad", "open", "good", "open"),
        "fall": ("bad", "bad", "good", "open"),
    }
    for expected, states in table.items():
        assert tuple(state(expected, *span) for span in spans.values()) == states, expected
    assert state("same", far, far + 0.1, n=19) == "open"
    assert state("same", 0.06, 0.07) == "good" and state("same", 0.06, 0.07, family="numerics") == "bad"
    assert pytest.approx(FALSE_ALARMS) == (1 - LEVEL_EACH) * (len(PROBES) + OTHER_TESTS)


def planted(seed: int, pays: float, taste: float, prompts: int = 250) -> tuple[list[Preference], Reward]:
    """Answers of random worth and length; labels want worth + taste * length, the reward pays worth + pays * length."""
    rng, worth, heldout = random.Random(seed), {}, []
    for i in range(prompts):
        texts = [f"Answer {i} {side} " + "word " * rng.randint(3, 60) for side in "ab"]
        worth |= {text: rng.gauss(0, 1.2) for text in texts}
        want = [worth[text] + taste * math.log(1 + words(text)) for text in texts]
        first = rng.random() < 1 / (1 + math.exp(want[1] - want[0]))
        heldout.append(preference(f"p{i}", texts[0], texts[1], float(first)))
    return heldout, by(lambda text: worth.get(text, 0.0) + pays * math.log(1 + words(text)), logits=True)


@pytest.mark.parametrize(
    ("pays", "taste", "over"), [(2.5, 0.0, True), (0.0, 0.0, False), (2.5, 2.5, False), (0.0, 2.5, False)]
)
def test_length_paid_beyond_the_labels_taste(pays: float, taste: float, over: bool) -> None:
    figures = report(*planted(0, pays, taste))
    assert (figures.length.excess.low > 0) == over
    assert (figures.taste["length"].low > 0) == (taste > 0)
    if pays == taste:
        assert abs(figures.length.excess.value) < 0.35
        assert figures.calibration.slope.low < 1 < figures.calibration.slope.high


def test_confidence_is_fitted_on_the_other_half() -> None:
    heldout, reward = planted(1, 0.0, 0.0, prompts=300)
    honest = report(heldout, reward).calibration
    assert honest.logits and honest.temperature == pytest.approx(1, abs=0.35)
    values = {item.text: reward([p.prompt], [item])[0].value for p in heldout for item in p.items}
    loud = report(heldout, by(lambda text: 6 * values.get(text, 0.0), logits=True))
    fit = loud.calibration
    assert fit.temperature == pytest.approx(6 * honest.temperature, rel=0.25)
    assert fit.ece > honest.ece + 0.1 and fit.log_loss > honest.log_loss
    assert fit.log_loss_fitted == pytest.approx(honest.log_loss_fitted, abs=0.02)
    assert next(f for f in findings(loud) if f.name == "calibration").state == "bad"
    assert next(f for f in findings(report(heldout, reward)) if f.name == "calibration").state == "good"
    plain = report(heldout, by(lambda text: values.get(text, 0.0)))
    assert not plain.calibration.logits
    assert next(f for f in findings(plain) if f.name == "calibration").state == "open"


def test_best_of_n_gains_gold_or_loses_it() -> None:
    heldout = [pair for i in range(30) for pair in (
        preference(f"p{i:02d}", "one two three", "one"), preference(f"p{i:02d}", "one two three four five", "one two"),
    )]  # fmt: skip
    states = {}
    for name, taste in (("with", words), ("against", lambda text: -words(text))):
        figures = report(heldout, by(taste), gold=by(words))
        assert [one.n for one in figures.best_of] == [2, 4]
        # words 1, 2, 3, 5: mean 2.75; the best of all four has 5 or, chosen against, 1
        std = math.sqrt(sum((x - 2.75) ** 2 for x in (1, 2, 3, 5)) / 3)
        assert figures.best_of[-1].gain.value == pytest.approx(((5 if name == "with" else 1) - 2.75) / std)
        assert figures.best_of[-1].most == pytest.approx((5 - 2.75) / std)
        states[name] = next(f.state for f in findings(figures) if f.name == "best of n")
    assert states == {"with": "good", "against": "bad"}


def test_members_that_disagree_on_new_samples() -> None:
    heldout = many(40, lambda i: " ".join(WORDS[:2]), lambda i: WORDS[i % 6])
    prompt = asked("new")
    new = [(asked(f"n{i}"), text_completion(prompt, f"zebra {i} quagga {i}")) for i in range(25)]

    def ensemble(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        made = []
        for completion in completions:
            value, doubt = words(completion.text), 4.0 if "zebra" in completion.text else 0.1
            parts = {"A": value - doubt, "B": value + doubt, "disagreement": doubt}
            made.append(Score(value=value, parts=parts))
        return made

    training = [preference("train", *WORDS[:2])]
    figures = reward_figures(
        training, heldout, score(plan(training, heldout, new, train=1, probes=0, seed=0), ensemble, None)
    )
    assert figures.disagreement and figures.novelty
    assert figures.disagreement.by_role["new"] == pytest.approx(4 / figures.spread)
    assert figures.disagreement.by_role["heldout"] == pytest.approx(0.1 / figures.spread)
    assert figures.novelty.far.value == 1 and figures.novelty.distance_new == 1
    states = {finding.name: finding.state for finding in findings(figures)}
    assert states["disagreement"] == "bad" and states["new samples"] == "bad"


def test_a_constant_reward_is_refused() -> None:
    with pytest.raises(PrefloopError, match="the same score"):
        report([preference("a", "one", "two three")], by(lambda text: 1.0))


def test_changes_that_might_not_fit_a_context_are_left_out() -> None:
    def asked_for(length: int) -> set[str]:
        heldout = many(3, lambda i: "word " * length + f"{i}.", lambda i: "Dry it.")
        return {ask.probe for ask in plan(heldout, heldout, [], train=0, probes=3, seed=0) if ask.role == "probe"}

    assert {"", "said twice", "another answer behind", "cut off"} <= asked_for(30)
    assert {"", "cut off"} <= asked_for(500) and not {"said twice", "heading"} & asked_for(500)


def test_rows_come_back_and_the_summary_is_json() -> None:
    heldout = many(3, lambda i: f"Rinse it {i}.", lambda i: "Dry it, and then again.")
    asks = plan(heldout[:1], heldout, [], train=1, probes=2, seed=0)
    scored = score(asks, by(words, logits=True), by(words))
    assert [from_row(ask, json.loads(json.dumps(row(one)))) for ask, one in zip(asks, scored, strict=True)] == scored
    assert asks == plan(heldout[:1], heldout, [], train=1, probes=2, seed=0)
    assert [ask.probe for ask in asks[-2:]] == ["in other company"] * 2
    figures = reward_figures(heldout[:1], heldout, scored)
    result = summary(figures, findings(figures))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    drawn = page({"reward": "<i>x", "preferences": "y"} | result, heldout, scored)
    assert "<i>x" not in drawn and "&lt;i&gt;x" in drawn and not re.search(r"\bnan\b", drawn)
