"""Hostile code costs its limit, scores 0 and does no harm; the next answer is scored right. Negative controls show that
the harm would be real: what is forbidden inside is possible outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefloop.rewards import jailed, verifiers
from prefloop.rewards import sandbox as walls
from prefloop.rewards.sandbox import SAFE, Sandbox, strongest
from prefloop.rewards.verifiers import unit_tests
from prefloop.types import Completion, Json, Message, PrefloopError, Prompt, Sampling, Score
from tests.patience import until

RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0"]


def walled() -> bool:
    try:
        return bool(strongest(SAFE))
    except PrefloopError:
        return False


pytestmark = pytest.mark.skipif(not walled() and os.environ.get("CI") != "true", reason="no sandbox can be built here")


def asked(*tests: Json, **checks: Json) -> Prompt:
    message = Message(role="user", content="Write add(a, b).")
    return Prompt(id="add", messages=(message,), checks={"tests": list(tests or TESTS), "seconds": 20, **checks})


def said(text: str) -> Completion:
    return Completion(
        id="c", prompt_id="add", segments=(), text=text, finish_reason="stop", sampling=Sampling(), seed=0
    )


def judge(code: str, *tests: Json, **checks: Json) -> Score:
    return unit_tests([asked(*tests, **checks)], [said(f"Here it is.\n\n```python\n{code}\n```\nDone.")])[0]


def values(attempts: list[str]) -> dict[str, float]:
    """The score of each piece of code, in front of the right function."""
    scores = unit_tests([asked(seconds=1)] * len(attempts), [said(f"{code}\n{RIGHT}") for code in attempts])
    return {code: score.value for code, score in zip(attempts, scores, strict=True)}


def hostile_then_right(code: str) -> Score:
    """The score of hostile code in front of the right function, whose neighbours must be scored as ever."""
    prompts = [asked(), asked(seconds=1), asked()]
    scores = unit_tests(prompts, [said(RIGHT), said(f"```\n{code}\n{RIGHT}```"), said(RIGHT)])
    assert (scores[0].value, scores[2].value) == (1.0, 1.0)
    return scores[1]


def ours(token: str) -> list[str]:
    """Processes of the whole system with this text among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [entry.parent.name] if token.encode() in entry.read_bytes() else []
        except OSError:
            continue
    return found


def test_share_of_tests_passed() -> None:
    assert judge(RIGHT).value == 1.0
    half = judge("def add(a, b):\n    return 5\n")
    assert half.value == 0.5 and half.parts == {"tests[0]": 1.0, "tests[1]": 0.0}
    assert "1 of 2 tests passed. tests[1]: AssertionError" in half.explanation
    assert judge("def add(a, b)\n").value == 0.0
    assert judge("raise SystemExit(0)\n").value == judge("import os\nos._exit(0)\n").value == 0.0
    assert judge("print('{\"ok\": true}')\nraise SystemExit(0)").value == 0.0


def test_programs_are_compared_by_what_they_print() -> None:
    code = "n = int(input())\nprint(n * n)"
    tests = [{"input": "3\n", "output": "9"}, {"input": "4", "output": "16\n"}, {"input": "5", "output": "24"}]
    score = judge(code, *tests)
    assert score.value == pytest.approx(2 / 3) and "it printed '25\\n'" in score.explanation
    assert judge("if __name__ == '__main__':\n    print(9)", tests[0]).value == 1.0


def test_each_test_has_a_fresh_process() -> None:
    once = "seen = []\ndef add(a, b):\n    seen.append(1)\n    return a + b if len(seen) == 1 else None\n"
    assert judge(once).value == 1.0
    assert judge(once, "assert add(1, 1) == 2 and add(1, 1) == 2").value == 0.0


def test_answers_are_compiled_as_files_of_their_own() -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass Node:\n    value: int\n    next: 'Node | int' = 0\n"
    code += "def add(a: int, b: int) -> int:\n    return Node(a, Node(b)).value + b\n"
    assert judge(code, "assert add(2, 3) == 5 and add.__annotations__['a'] is int").value == 1.0
    assert judge(f"{code}print(add.__annotations__['b'] is int)", {"input": "", "output": "True"}).value == 1.0


@pytest.mark.parametrize(
    "code",
    [
        "import json; json.dumps = lambda *a, **k: '{\"ok\": true}'",
        "import json; json.encoder.JSONEncoder.encode = lambda *a, **k: '{\"ok\": true}'",
        "import os; write = os.write; os.write = lambda fd, data: write(fd, b'{\"ok\": true}')",
        "import os; leave = os._exit; os._exit = lambda code: leave(0)",
        "import builtins; builtins.exec = builtins.compile = lambda *a, **k: None",
    ],
)
def test_what_answers_share_with_the_checking_code_tells_no_pass(code: str) -> None:
    assert judge(f"{code}\ndef add(a, b): return 9").value == 0.0


def test_waiting_for_others_costs_no_processor_time() -> None:
    """A busy machine looks like this from inside: the clock goes on while the answer does not."""
    assert judge(f"import time\ntime.sleep(1.2)\n{RIGHT}", TESTS[0], seconds=1).value == 1.0


def test_as_many_answers_at_once_as_this_process_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = []

    def pool(max_workers: int) -> ThreadPoolExecutor:
        asked_for.append(max_workers)
        return ThreadPoolExecutor(max_workers)

    monkeypatch.setattr(verifiers, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert judge(RIGHT).value == 1.0 and asked_for == [1]


def test_processor_time_is_that_of_all_tests_together() -> None:
    burn = "import time\nwhile time.process_time() < 0.7: pass"
    score = judge(burn, "pass", "pass", "pass", seconds=1)
    assert score.parts == {"tests[0]": 1.0, "tests[1]": 0.0, "tests[2]": 0.0} and "time is up" in score.explanation


def test_a_sandbox_that_died_between_two_answers_costs_neither() -> None:
    with Sandbox() as sandbox:
        assert sandbox.ask({"kind": "program", "code": "print(1)"}, 20)["output"] == "1\n"
        assert sandbox._jail
        sandbox._jail.process.terminate()
        sandbox._jail.process.wait()
        assert sandbox.ask({"kind": "program", "code": "print(2)"}, 20)["output"] == "2\n"


def test_a_sandbox_that_is_full_is_built_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replies: list[dict[str, object]] = [{"ok": True}, {"full": "no room"}, {"ok": True}, {"full": "a"}, {"full": "b"}]
    built = []

    class Jail:
        offline = True

        def __init__(self, *_: object) -> None:
            built.append(self)

        def ask(self, task: Json, seconds: float) -> dict[str, object]:
            return replies.pop(0)

        def close(self) -> None:
            pass

    with Sandbox() as sandbox:
        monkeypatch.setattr(walls, "_Jail", Jail)
        assert [sandbox.ask({}, 1) for _ in range(2)] == [{"ok": True}] * 2 and len(built) == 2
        with pytest.raises(PrefloopError, match=r"no room for a task \(b\)"):
            sandbox.ask({}, 1)


def test_no_process_to_be_had_is_told_from_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    assert jailed._run({}, lambda: None) == {"full": "Resource temporarily unavailable"}


def test_what_a_process_told_is_never_taken_for_the_sandboxs_own_word() -> None:
    assert jailed._words(0, b'{"ok": true, "full": "x", "cpu": 0, "lost": 1}') == {"ok": True}
    assert jailed._words(0, b"5") == jailed._words(1, b"") == {"why": "it ended before the check"}
    assert jailed._words(1, b'{"ok": true}') == {"why": '{"ok": true}'}


def test_endless_loop() -> None:
    score = hostile_then_right("while True: pass")
    assert score.value == 0.0 and "time is up" in score.explanation


def test_what_time_is_left_after_one_test_is_all_that_the_others_get() -> None:
    score = judge("import time", "time.sleep(60)", "pass", seconds=1)
    assert score.value == 0.0 and score.parts == {"tests[0]": 0.0, "tests[1]": 0.0}


def test_fork_bomb() -> None:
    token = uuid.uuid4().hex
    code = f"import os, sys\nwhile True:\n    try: os.fork()\n    except OSError: pass\n# {token}"
    assert hostile_then_right(code).value == 0.0
    count = (
        "import os, time\nn = 0\ntry:\n    while n < 200:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
    )
    count += "except OSError: pass\nprint(n < 20)"
    assert judge(count, {"input": "", "output": "True"}).value == 1.0


def test_ten_gigabytes_of_memory() -> None:
    score = hostile_then_right("x = bytearray(10 << 30)")
    assert score.value == 0.0 and "MemoryError" in score.explanation
    assert judge("x = bytearray(100 << 20)", "assert len(x) == 100 << 20").value == 1.0


def test_a_tower_of_powers() -> None:
    assert hostile_then_right("x = 9 ** 9 ** 9 ** 9").value == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "print('x' * (1 << 30))",
        "import sys\nfor _ in range(1 << 10): sys.stdout.write('x' * (1 << 20))",
        "import os\nfor _ in range(1 << 10): assert os.write(1, b'x' * (1 << 20)) == 1 << 20",
        "f = open('big', 'wb')\nfor _ in range(1 << 10): f.write(b'x' * (1 << 20))",
        "for i in range(1 << 10): open(str(i), 'wb').write(b'x' * (1 << 20))",
    ],
)
def test_a_gigabyte_of_output(code: str) -> None:
    score = hostile_then_right(code)
    assert score.value == 0.0 and len(score.explanation) < 500


def test_files_outside_stay(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    attempts = [
        f"import os\nos.remove({str(kept)!r})",
        f"open({str(kept)!r}, 'w').write('lost')",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.remove({__file__!r})",
        "import os\nos.remove(os.__file__)",
        "open('/etc/hostile', 'w')",
        "open('/usr/hostile', 'w')",
        "open('/proc/sysrq-trigger', 'w').write('')",
    ]
    assert values(attempts) == dict.fromkeys(attempts, 0.0)
    assert kept.read_text() == "kept" and Path(__file__).exists() and Path(os.__file__).exists()
    assert judge(f"open('mine', 'w').write('x')\n{RIGHT}").value == 1.0
    kept.unlink()  # the control: outside, nothing stands in the way


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(0.2)
        yield made


def test_no_network(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    call = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1).send(b'x')\n"
    assert hostile_then_right(call).value == 0.0
    with pytest.raises(TimeoutError):
        listener.accept()
    subprocess.run([sys.executable, "-c", call], check=True)  # the control
    listener.accept()[0].close()


def test_a_daemon_is_dead_afterwards() -> None:
    token = uuid.uuid4().hex
    code = f"""import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", "{token}"], start_new_session=True)
        import time; time.sleep(120)
    os._exit(0)
os.wait()
"""
    test = "import glob, time\nend = time.monotonic() + 20\n"
    test += f"while not any('{token}' in open(p).read() for p in glob.glob('/proc/[0-9]*/cmdline')):\n"
    test += "    assert time.monotonic() < end\n    time.sleep(0.05)"
    assert judge(code, test).value == 1.0  # the control: it was alive
    assert ours(token) == []


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("HOSTILE_SECRET", secret)
    code = f"""import glob, os
found = "{secret[:16]}" + "{secret[16:]}"
seen = " ".join(map(str, os.environ.items()))
for path in glob.glob("/proc/*/environ"):
    try: seen += open(path).read()
    except OSError: pass
assert found in seen
"""
    assert judge(code, "pass").value == 0.0
    subprocess.run([sys.executable, "-c", code], check=True)  # the control
    names = "import os; print(sorted(os.environ))"
    assert "HOSTILE" not in judge(names, {"input": "", "output": ""}).explanation


def test_limits_and_rights_cannot_be_taken_back() -> None:
    attempts = [
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
        "import os; os.setuid(0)",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
        "import os; os.kill(1, 9); import time; time.sleep(0.2); assert os.path.exists('/nowhere')",
        "import signal; signal.setitimer(signal.ITIMER_REAL, 0); import time; time.sleep(60)",
    ]
    assert values(attempts) == dict.fromkeys(attempts, 0.0)


def test_a_dead_parent_takes_the_sandbox_along(tmp_path: Path) -> None:
    token = uuid.uuid4().hex
    body = (
        "import sys; from prefloop.rewards.sandbox import Sandbox\n"
        "with Sandbox() as s:\n    print('up', flush=True)\n"
        f"    s.ask(dict(kind='program', code='import subprocess, sys; "
        f'subprocess.run([sys.executable, "-c", "import time; time.sleep(60)", "{token}"])\'), 60)'
    )
    with subprocess.Popen(
        [sys.executable, "-c", body], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == b"up\n"
        until(lambda: ours(f"0)\x00{token}"))  # the control: it was alive
        parent.kill()
    until(lambda: not ours(f"0)\x00{token}"), seconds=40)  # it would end by itself after 60


def test_without_walls_it_refuses_and_says_why() -> None:
    with pytest.raises(PrefloopError, match="No sandbox can be built here"):
        strongest(())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_as_root_code_never_runs_without_walls() -> None:
    assert walls.UNSAFE == SAFE


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = list[Path](), tempfile.mkdtemp

    def note(**named: Any) -> str:
        made.append(Path(make(**named)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", note)
    judge("import os\nfor _ in range(300):\n    os.mkdir('d' * 200); os.chdir('d' * 200)")
    assert made and not [folder for folder in made if folder.exists()]
    with Sandbox() as sandbox:
        assert sandbox.ask({"kind": "program", "code": "print(1)"}, 2)["output"] == "1\n"
        assert sandbox.note == "" or sandbox.wall != "namespaces"
