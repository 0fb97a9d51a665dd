"""What the code's shape promises: light rooms stay light, files stay small, the docs say what the code says."""

import ast
import importlib
import inspect
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prefloop.configs.describe import describe
from prefloop.configs.pipeline import STAGES, RecipeConfig
from prefloop.configs.shared import Config

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
LONGEST = 450


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_light_rooms_load_without_torch() -> None:
    rooms = [p for p in SOURCES if p.parent.name in ("configs", "store") or p.name in ("types.py", "cli.py")]
    modules = [".".join(p.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__") for p in rooms]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    code += "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST, f"{name(path)} is longer than {LONGEST} lines; split it by subject"
    assert not text or ast.get_docstring(ast.parse(text)), f"{name(path)} has no module docstring"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_is_a_module_with_run(stage: str) -> None:
    run = importlib.import_module(f"prefloop.stages.{stage}").run
    assert next(iter(inspect.signature(run, eval_str=True).parameters.values())).annotation is STAGES[stage]


def test_every_key_has_a_docstring() -> None:
    models: list[type[Config]] = [RecipeConfig, *STAGES.values()]
    for model in models:
        assert [key.name for key in describe(model) if not key.help.endswith(".")] == []


def test_the_configuration_page_is_current() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    page = runpy.run_path(str(ROOT / "scripts" / "docs.py"))["page"]
    assert written == page(), "run: python scripts/docs.py"


def test_pins_hold_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert [name for name in wanted if name.partition(">=")[0].partition("[")[0].lower() not in pins] == []
