"""What the documents promise of the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent


def test_each_line_of_the_checklist_has_tests_that_exist() -> None:
    table = (HERE.parent / "docs" / "labeling.md").read_text().partition("| line | what | test |")[2]
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 37))
    for number, named in rows:
        tests = re.findall(r"`([a-z]+/test_\w+\.py)::(test_\w+)`", named)
        assert tests and len(tests) == named.count("`") / 2, number
        for file, name in tests:
            made = ast.parse((HERE / file).read_text()).body
            assert name in [one.name for one in made if isinstance(one, ast.FunctionDef)], f"{number}: {file}::{name}"
