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


def test_tests_that_pages_on_methods_name_exist() -> None:
    named = {
        found
        for page in (HERE.parent / "docs" / "methods").glob("*.md")
        for found in re.findall(r"`((?:[a-z]+/)?test_\w+\.py)::(test_\w+)`", page.read_text())
    }
    assert len(named) > 20
    for file, name in sorted(named):
        made = ast.parse((HERE / file).read_text()).body
        assert name in [one.name for one in made if isinstance(one, ast.FunctionDef)], f"{file}::{name}"


def test_the_seventeen_details_each_have_a_test_or_a_key() -> None:
    page = (HERE.parent / "docs" / "methods" / "ppo.md").read_text().partition("| detail | here | test or key |")[2]
    rows = re.findall(r"^\| (\d+) [^|]*\|[^|]*\| ([^|]+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 18))
    assert all("`" in held for _, held in rows)
