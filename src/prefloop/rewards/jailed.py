"""What is done behind the walls that jail.py builds: one task a line in JSON, each in a process of its own, which ends
with everything that it started. Standard library at import."""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import json
import math
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
import types
from collections.abc import Callable
from typing import Any

MOST_OUTPUT = 1 << 20
_FAILED = 1
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.List, ast.Tuple),
    *(ast.Name, ast.Load, ast.Call),
)
_MATHEMATICS = {
    *("sqrt", "exp", "log", "ln", "Abs", "abs", "factorial", "Integer", "Float", "Rational", "Symbol", "Eq", "Pow")
} | {
    f"{arc}{name}{h}"
    for arc in ("", "a", "arc")
    for name in ("sin", "cos", "tan", "sec", "csc", "cot")
    for h in ("", "h")
}
_compile = compile
Task = dict[str, Any]


def serve(greeting: Task, sweep: Callable[[], object]) -> None:
    """Answers tasks until the input ends. `sweep` ends whatever a task left running."""
    if "math_verify" in sys.modules:  # its parser learns from every text: what it learns here, no task pays for
        with contextlib.redirect_stderr(io.StringIO()):
            for text in (r"$\frac{1}{2} x^2 + (2x - \sqrt{3})$", "$0.5$", "$half$"):
                _math({"target": "$1/2$", "text": text})
    _say(greeting)
    for line in sys.stdin:
        _say(_run(json.loads(line), sweep))


def _say(words: Task) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _run(task: Task, sweep: Callable[[], object]) -> Task:
    """What the task says (`ok`, `why`, `wrong`) or `why` that is nothing, the `output` that it printed, and the seconds
    of processor time (`cpu`) that it took; or why the sandbox is `full`."""
    try:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as told:
            given.write(task.pop("input", "").encode("utf-8", "replace"))
            given.flush()
            child = os.fork()
            if child == 0:
                _work(task, given.fileno(), printed.fileno(), told.fileno())
            status, cpu = _wait(child, task["wall"])
            sweep()
            words: Task = {"why": "time is up"}
            if status is not None and cpu < task["seconds"]:
                words = _words(status, os.pread(told.fileno(), MOST_OUTPUT, 0))
            output = os.pread(printed.fileno(), MOST_OUTPUT, 0).decode("utf-8", "replace")
            return {**words, "output": output, "cpu": cpu}
    except OSError as error:
        sweep()
        return {"full": str(error.strerror or error)}


def _wait(child: int, seconds: float) -> tuple[int | None, float]:
    """A child's exit status, negative for a signal, None where it had to be ended after `seconds`; and its processor
    time, with that of the processes that it waited for."""

    def ring(*_: object) -> None:
        raise TimeoutError

    try:
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
        try:
            _, status, usage = os.wait4(child, 0)
        finally:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return None, 0.0
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _words(status: int, told: bytes) -> Task:
    """What a process told before it ended; of one that failed a text, and never that it is right."""
    if told and status == _FAILED:
        return {"why": told.decode("utf-8", "replace")}
    if status == 0:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(said := json.loads(told), dict):
                return {name: said[name] for name in ("ok", "why", "wrong") if name in said}
    ends = {-signal.SIGXCPU: "time is up", -signal.SIGKILL: "it was killed"}
    return {"why": ends.get(status, f"it ended by signal {-status}" if status < 0 else "it ended before the check")}


def _work(task: Task, given: int, printed: int, told: int) -> None:
    """The task, in a process of its own, which this never leaves. The answer's code may change every module: what comes
    after it is bound before, and a failure is told by the exit status."""
    dumps, write, leave, number = json.dumps, os.write, os._exit, os.getpid
    code, mine = _FAILED, number()
    try:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        cpu = math.ceil(task["seconds"])
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # SIGXCPU, and for whoever bears that SIGKILL
        for source, target in ((given, 0), (printed, 1), (printed, 2)):
            os.lseek(source, 0, os.SEEK_SET)
            os.dup2(source, target)
        sys.stdin, sys.stdout = io.TextIOWrapper(open(0, "rb")), io.TextIOWrapper(open(1, "wb"))  # noqa: SIM115
        words = dumps(TASKS[task["kind"]](task)).encode()
        sys.stdout.flush()
        if number() == mine:  # and not a copy that the answer made of it
            write(told, words)
            code = 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            if number() == mine:
                write(told, _short(error).encode("utf-8", "replace"))
    finally:
        leave(code)


def _short(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[-200:]


def _program(task: Task) -> Task:
    """Runs `code` as a program that reads its input."""
    with contextlib.suppress(SystemExit):
        exec(_compiled(task["code"], "answer.py"), _names("__main__"))
    return {"ok": True}


def _asserts(task: Task) -> Task:
    """Runs `code`, then `test` with its names; that nothing was raised is a pass."""
    run, test, names = exec, _compiled(task["test"], "test.py"), _names("answer")
    run(_compiled(task["code"], "answer.py"), names)
    run(test, names)
    return {"ok": True}


def _names(module: str) -> Task:
    """Those of a new module, which is found where classes look for their own."""
    sys.modules[module] = made = types.ModuleType(module)
    return made.__dict__


def _compiled(code: str, file: str) -> types.CodeType:
    """Without what this file imports from __future__."""
    return compile(code, file, "exec", dont_inherit=True)


def _regex(task: Task) -> Task:
    try:
        pattern = re.compile(task["pattern"])
    except re.error as error:
        return {"wrong": f"the pattern is not one: {error}"}
    return {"ok": pattern.search(task["text"]) is not None, "why": "the pattern is not found"}


def _schema(task: Task) -> Task:
    from jsonschema.exceptions import SchemaError, best_match
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        kind = validator_for(task["schema"])
        kind.check_schema(task["schema"])
        checker = kind(task["schema"], registry=Registry(), format_checker=kind.FORMAT_CHECKER)
        error = best_match(checker.iter_errors(task["value"]))
    except (SchemaError, Unresolvable) as wrong:
        return {"wrong": f"the schema is not one: {_short(wrong)}"}
    return {"ok": error is None, "why": "" if error is None else f"{error.json_path}: {error.message:.150}"}


def _math(task: Task) -> Task:
    """math-verify bounds its time by a signal, which long arithmetic does not notice; the limits of this process do."""
    from math_verify import parse, verify

    gold, found = (parse(task[name], parsing_timeout=None) for name in ("target", "text"))
    if not gold:
        return {"wrong": "the target is not an expression"}
    if not found:
        return {"ok": False, "why": "no expression was found"}
    same = verify(gold, found, timeout_seconds=None)
    return {"ok": same, "why": f"{found[0]!s:.80} is not {gold[0]!s:.80}"}


def _computes(text: str) -> bool:
    """Whether a text, run as Python, does no more than compute: it calls functions of mathematics alone."""
    try:
        tree = _compile(text.lstrip(" \t"), "answer", "eval", ast.PyCF_ONLY_AST, True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    nodes = list(ast.walk(tree))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    known = all(isinstance(name, ast.Name) and name.id in _MATHEMATICS for name in called)
    return known and all(isinstance(node, _ARITHMETIC) for node in nodes)


def _guard(name: str) -> None:
    """From now on this builtin takes no text but arithmetic, and the line by which sympy fetches its own names."""
    run = getattr(builtins, name)

    def guarded(text: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(text, str) and text != "from sympy import *" and not _computes(text):
            raise PermissionError(f"{text!r:.80} is no arithmetic")
        if not rest:
            frame = sys._getframe(1)
            rest = (frame.f_globals, frame.f_locals)
        return run(text, *rest, **named)

    setattr(builtins, name, guarded)


def _gym(task: Task) -> Task:
    """Makes the problem again, and asks the library that made it what it thinks of either form of the answer. Checks of
    some tasks run the answer as code, in this process, which it could then tell what to say."""
    import reasoning_gym

    origin = task["origin"]
    made = reasoning_gym.create_dataset(origin["task"], seed=origin["seed"], size=origin["size"], **origin["config"])
    problem, best = made[origin["index"]], 0.0
    for name in ("eval", "exec", "compile"):
        _guard(name)
    for text in task["texts"]:
        with contextlib.suppress(Exception):
            best = max(best, float(made.score_answer(text, problem)))
    return {"ok": best >= 1.0, "why": f"the answer is {task['texts'][-1]!r:.80}, which scores {best:.3g}"}


TASKS: dict[str, Callable[[Task], Task]] = {
    "program": _program,
    "asserts": _asserts,
    "regex": _regex,
    "schema": _schema,
    "math": _math,
    "gym": _gym,
}
