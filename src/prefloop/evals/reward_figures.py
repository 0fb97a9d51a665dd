"""What a report on a reward holds. Fractions are in 0..1; shifts and leads in reference stds (`RewardFigures.spread`).

A verdict rests on tests that err together in at most FALSE_ALARMS of reports on a reward without fault (Bonferroni
1936): each interval that a verdict reads is at level LEVEL_EACH. All other intervals are 95 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefloop.evals.probes import PROBES
from prefloop.evals.reward_model import RewardReport
from prefloop.ops.statistics import Figure

FALSE_ALARMS = 0.05
OTHER_TESTS = 13
"""Three controls, gap, calibration, easy pairs, spread of votes, length, best of n, groups, three of new samples."""
LEVEL_EACH = 1 - FALSE_ALARMS / (len(PROBES) + OTHER_TESTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one annotator said of two answers (their ids): `first` is 1, 0.5 or 0, or a probability that the first is
    better. `group`: declared, of the annotator."""

    items: tuple[str, str]
    annotator: str
    first: float
    group: str = ""
    strength: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well probabilities fit labels. `logits`: whether scores' differences are logits of preference as they are.

    `slope`: what logits have to be multiplied by (1 over the temperature), with its interval at LEVEL_EACH. The fitted
    figures take each half of the prompts at the temperature of the other half."""

    logits: bool
    slope: Figure
    temperature: float
    ece: float
    brier: float
    log_loss: float
    ece_fitted: float
    brier_fitted: float
    log_loss_fitted: float


@dataclass(frozen=True, slots=True)
class Separability:
    """Of signed margins of the preferred answer: mean / std, area under the curve of better against worse ones."""

    d_prime: float
    auc: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """`correlation`: within prompts, of words and score; `gold`: of words and gold score. `excess`: stds of score that
    a std of difference in length is paid beyond what the labels pay it, at LEVEL_EACH; NaN where scores say nothing."""

    correlation: Figure
    gold: Figure
    excess: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFigure:
    """`shift`: of the score by a change, in reference stds, over prompts, at LEVEL_EACH; `flips`: share of comparisons
    whose winner changes with it. `groups`: mean shift on the prompts that a declared group judged."""

    name: str
    family: str
    expected: str
    shift: Figure
    flips: float
    groups: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN:
    """Gain of gold score, in its stds within prompts, over a random answer, by taking the best of n; `most`: if gold
    itself had chosen."""

    n: int
    gain: Figure
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """New samples beside the training data: 1 - largest cosine (TF-IDF) with a training answer, and of them the share
    that lies farther than 99 % of held-out answers do; the share that scores above 99 % of training answers."""

    distance_heldout: float
    distance_new: float
    far: Figure
    above: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Std over an ensemble's members in reference stds: means by where answers come from, by slice and by probe.
    `rise`: of new samples' mean less twice that of held-out answers, at LEVEL_EACH. `points`: [distance, std, role]."""

    by_role: Mapping[str, float]
    by_slice: Mapping[str, float]
    by_probe: Mapping[str, float]
    rise: Figure
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFigures:
    """All of the report. `spread`: std of scores among answers to one held-out prompt, the reference std. `lead`: of
    the reward's accuracy over each control's, at LEVEL_EACH; `gap`: accuracy on training prompts less held-out."""

    held_out: RewardReport
    spread: float
    prompts: int
    simulated: bool
    judges: tuple[str, ...]
    controls: Mapping[str, Figure]
    lead: Mapping[str, Figure]
    train: Figure
    gap: Figure
    agreement: Figure
    ceiling: Figure
    single: Figure
    adjusted: float
    by: Mapping[str, Mapping[str, Figure]]
    calibration: Calibration
    separability: Mapping[str, Separability]
    easy: Figure
    confidence: Figure
    votes: Sequence[tuple[float, float, int]]
    length: Length
    taste: Mapping[str, Figure]
    groups: Mapping[str, Figure]
    probes: Sequence[ProbeFigure]
    best_of: Sequence[BestOfN]
    novelty: Novelty | None
    disagreement: Disagreement | None
