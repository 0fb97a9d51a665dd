"""Verifiers as rewards: whether an answer is right, as far as code can say. Each is (prompts, completions) -> scores in
0..1 and reads `Prompt.target` or `Prompt.checks` (docs/verifiers.md has an example of each).

Text and code of an answer are hostile until proven otherwise: what could take long or do harm runs in a sandbox, where
it costs its time limit and scores 0, and the next answer is scored as if nothing had happened.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TypeVar

from prefloop.data.gym import exact_alone
from prefloop.engine.build import available_cores
from prefloop.rewards.answers import LONGEST, bare, fenced, final_answer, normal, number, scaled, stated
from prefloop.rewards.constraints import CONSTRAINTS, limits, require_shapes, required
from prefloop.rewards.refusals import PLAIN, WORD
from prefloop.rewards.sandbox import ANY, PATIENCE, SAFE, UNSAFE, Reply, Sandbox, Wall, strongest
from prefloop.types import Completion, Json, PrefloopError, Prompt, Score

SECONDS = 5.0
"""Of processor time for one answer, all of its tests together; `seconds` in a prompt's checks changes it for tests."""
CHECKS = (*CONSTRAINTS.split(), "tolerance", "relative_tolerance", "pattern", "schema", "tests", "seconds")
_DEEPEST = 50
_NONE = "there is no answer"
_DELIMITED = re.compile(r"\$|\\[(\[]")
_Found = TypeVar("_Found")


def exact(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the final answer is the target, but for case, spaces, and marks around it."""
    return [_exact(p, c.text) for p, c in _pairs("exact", prompts, completions)]


def numeric(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the final answer is one number, no farther from the target than the greater of `tolerance` and
    `relative_tolerance` times the target; both are 0 where not given."""
    return [_numeric(p, c.text) for p, c in _pairs("numeric", prompts, completions)]


def constraints(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """The share of a prompt's checks that the answer meets in full (IFEval's instruction-level accuracy, Zhou et al.
    2023, arXiv:2311.07911); `parts` give credit for near misses. An answer without a word meets none."""
    return [_constraints(p, c.text) for p, c in _pairs("constraints", prompts, completions)]


def regex(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where `pattern` (of Python's re) is found in the answer."""

    def task(prompt: Prompt, text: str) -> Json:
        return {"kind": "regex", "pattern": _check(prompt, "pattern", str), "text": text}

    return _judged("regex", task, prompts, completions)


def json_schema(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the answer, or its first fenced block, is JSON that meets `schema`; 50 levels deep at most."""

    def task(prompt: Prompt, text: str) -> Json:
        schema = _check(prompt, "schema", dict)
        try:
            return {"kind": "schema", "schema": schema, "value": _strict_json(fenced(text))}
        except (ValueError, RecursionError) as error:
            return f"not JSON: {error}"

    return _judged("json_schema", task, prompts, completions, ("jsonschema", "referencing"))


def math(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the final answer is the same expression as the target, by math-verify."""

    def task(prompt: Prompt, text: str) -> Json:
        target, found = _target(prompt), final_answer(text)
        return {"kind": "math", "target": _formula(bare(target)), "text": _formula(found)} if found else _NONE

    return _judged("math", task, prompts, completions, ("math_verify", "sympy"))


def gym(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the answer is the target, or reasoning-gym's own check of the task has nothing to object to it; what that
    says of half an answer is not counted. The answer is the final one, of targets of several lines the whole text.

    Checks of that library may run an answer as code, so they are asked behind walls, and only where they may give full
    marks to another answer than the target."""

    def found(prompt: Prompt, text: str) -> list[str]:
        return _forms(prompt, text if "\n" in _target(prompt).strip() else stated(text))

    def task(prompt: Prompt, text: str) -> Json:
        origin, forms = _check(prompt, "gym", dict), found(prompt, text)
        if not forms or exact_alone(origin):
            return f"the answer is {forms[-1]!r:.80}" if forms else _NONE
        return {"kind": "gym", "origin": origin, "texts": forms}

    pairs = _pairs("gym", prompts, completions)
    same = [not set(_forms(p, _target(p))).isdisjoint(found(p, c.text)) for p, c in pairs]
    rest = [pair for pair, right in zip(pairs, same, strict=True) if not right]
    asked = iter(_judged("gym", task, [p for p, _ in rest], [c for _, c in rest], ("reasoning_gym",), SAFE))
    return [_verdict("gym", True, "") if right else next(asked) for right in same]


def unit_tests(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """The share of `tests` that the answer's code (its first fenced block, or all of it) passes behind walls."""
    return _unit_tests("unit_tests", SAFE, prompts, completions)


def unit_tests_unsafe(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """As `unit_tests`, but also where no walls can be built: the answer's code may then do what its user may."""
    return _unit_tests("unit_tests_unsafe", UNSAFE, prompts, completions)


def _pairs(name: str, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[tuple[Prompt, Completion]]:
    if len(prompts) != len(completions):
        raise PrefloopError(
            f"{name}: {len(prompts)} prompts for {len(completions)} completions; pass one prompt for each."
        )
    return list(zip(prompts, completions, strict=True))


def _target(prompt: Prompt) -> str:
    if not prompt.target:
        raise PrefloopError(f"Prompt {prompt.id}: no target; give the right answer as 'target'.")
    return prompt.target


def _check(prompt: Prompt, name: str, kind: type[_Found]) -> _Found:
    found = prompt.checks.get(name)
    if not isinstance(found, kind) or not found:
        raise PrefloopError(f"Prompt {prompt.id}: checks need {name!r}, of the type {kind.__name__}.")
    return found


def _verdict(by: str, right: bool, why: str) -> Score:
    return Score(value=float(right), by=by, explanation="" if right else f"{why[:1].upper()}{why[1:]}.")


def _exact(prompt: Prompt, text: str) -> Score:
    target, found = _target(prompt), final_answer(text)
    return _verdict("exact", bool(found) and normal(found) == normal(target), f"the answer is {found!r:.80}")


def _numeric(prompt: Prompt, text: str) -> Score:
    wanted = number(_target(prompt))
    if wanted is None:
        raise PrefloopError(f"Prompt {prompt.id}: target {prompt.target!r:.80} is not one number.")
    room = max(_tolerance(prompt, "tolerance"), _tolerance(prompt, "relative_tolerance") * abs(wanted))
    found = number(answer := final_answer(text))
    why = f"{answer!r:.80} is not one number" if found is None else f"the answer is {answer!r:.80}"
    return _verdict("numeric", found is not None and abs(found - wanted) <= room, why)


def _tolerance(prompt: Prompt, name: str) -> Fraction:
    value = prompt.checks.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise PrefloopError(f"Prompt {prompt.id}: {name} is {value!r}; give a number from 0.")
    return Fraction(str(value))


def _constraints(prompt: Prompt, text: str) -> Score:
    if unknown := sorted(set(prompt.checks) - set(CHECKS)):
        near = difflib.get_close_matches(unknown[0], CHECKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the checks are {', '.join(CHECKS)}."
        raise PrefloopError(f"Prompt {prompt.id}: unknown check {unknown[0]!r}; {hint}")
    require_shapes(prompt)
    text = text.translate(PLAIN).strip()
    flat, n_words = " ".join(text.lower().split()), len(WORD.findall(text))
    parts = required(prompt.checks, text, flat, n_words) | limits(prompt.checks, text, flat, n_words)
    if not parts:
        raise PrefloopError(f"Prompt {prompt.id}: no checks to hold an answer to; give one of {CONSTRAINTS}.")
    if not n_words:
        return Score(value=0.0, parts=dict.fromkeys(parts, 0.0), by="constraints", explanation="There is no answer.")
    missed = [name for name, met in parts.items() if met < 1.0]
    explanation = f"Not met: {', '.join(missed)}." if missed else ""
    return Score(value=1.0 - len(missed) / len(parts), parts=parts, by="constraints", explanation=explanation)


def _forms(prompt: Prompt, text: str) -> list[str]:
    """A target, or what stands for it in an answer: as it is and, unless it has several lines, bare."""
    several = "\n" in _target(prompt).strip()
    return [form for form in dict.fromkeys((text.strip(), text.strip() if several else bare(text))) if form]


def _formula(text: str) -> str:
    """As math-verify finds it: between delimiters, without signs of money. It skips words, also \\text{million}."""
    plain = scaled(text.replace("\\$", ""))
    return plain if _DELIMITED.search(plain) else f"${plain}$"


def _strict_json(text: str) -> Json:
    def once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        if len(made := dict(pairs)) < len(pairs):
            raise ValueError("a key is given twice")
        return made

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    layer, depth = [value], 0
    while layer:
        if (depth := depth + 1) > _DEEPEST + 1:
            raise ValueError(f"it is more than {_DEEPEST} levels deep")
        inner = [v.values() if isinstance(v, dict) else v for v in layer if isinstance(v, dict | list)]
        layer = [item for items in inner for item in items]
    return value


def _judged(
    by: str,
    task: Callable[[Prompt, str], Json],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    libraries: Sequence[str] = (),
    walls: Sequence[Wall] = ANY,
) -> list[Score]:
    """Scores by a sandbox that runs our own code on the answers' text; a task that is a text says why there is none."""
    pairs = _pairs(by, prompts, completions)
    tasks = [task(p, c.text) if len(c.text) <= LONGEST else "the answer is too long" for p, c in pairs]
    scores = []
    with Sandbox(walls, libraries) as sandbox:
        for prompt, asked in zip(prompts, tasks, strict=True):
            reply: Reply = {"why": asked} if isinstance(asked, str) else sandbox.ask(asked, SECONDS)
            if (wrong := reply.get("wrong")) and walls is ANY:  # else the answer may have said it
                raise PrefloopError(f"Prompt {prompt.id}: {wrong}.")
            scores.append(_verdict(by, reply.get("ok") is True, str(reply.get("why", ""))))
    return scores


def _unit_tests(
    by: str, walls: Sequence[Wall], prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Score]:
    jobs = [(prompt, completion, _tests(prompt)) for prompt, completion in _pairs(by, prompts, completions)]
    strongest(tuple(walls))  # says at once where none can be built
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        return list(pool.map(lambda job: _run_tests(by, walls, *job), jobs))


def _tests(prompt: Prompt) -> list[Json]:
    tests = _check(prompt, "tests", list)
    for place, test in enumerate(tests):
        io = isinstance(test, dict) and set(test) == {"input", "output"} and all(type(v) is str for v in test.values())
        if not io and not isinstance(test, str):
            raise PrefloopError(
                f"Prompt {prompt.id}: tests[{place}] is neither Python code nor an object of two texts, "
                "'input' and 'output'."
            )
    seconds = prompt.checks.get("seconds", SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3600:
        raise PrefloopError(f"Prompt {prompt.id}: seconds is {seconds!r}; give a number above 0, at most 3600.")
    return tests


def _run_tests(by: str, walls: Sequence[Wall], prompt: Prompt, completion: Completion, tests: Sequence[Json]) -> Score:
    """Each test in a process of its own, all of one answer in one sandbox, which ends with the answer."""
    code, parts, failures = fenced(completion.text), {}, []
    seconds = prompt.checks.get("seconds", SECONDS)
    until = time.monotonic() + PATIENCE * seconds
    with Sandbox(walls) as sandbox:
        for place, test in enumerate(tests):
            wall = until - time.monotonic()
            if len(code) > LONGEST:
                why = "the answer is too long"
            elif min(seconds, wall) <= 0:
                why = "time is up"
            else:
                reply = sandbox.ask(_asked(code, test), seconds, wall)
                why = _failure(test, reply)
                seconds -= reply.get("cpu", 0.0)
            parts[f"tests[{place}]"] = float(not why)
            failures += [f"tests[{place}]: {why}"] if why else []
        note = sandbox.note
    passed = f"{len(tests) - len(failures)} of {len(tests)} tests passed."
    explanation = " ".join([note + passed, *failures[:1]])
    return Score(value=1.0 - len(failures) / len(tests), parts=parts, by=by, explanation=explanation)


def _asked(code: str, test: Json) -> Json:
    asked = {"kind": "asserts", "test": test} if isinstance(test, str) else {"kind": "program", "input": test["input"]}
    return {**asked, "code": code}


def _failure(test: Json, reply: Reply) -> str:
    """Why a test failed, empty where it passed."""
    if reply.get("ok") is not True:
        return str(reply.get("why", "the sandbox said nonsense"))
    if isinstance(test, dict) and _lines(str(reply.get("output"))) != _lines(test["output"]):
        return f"it printed {reply.get('output')!r:.80}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
