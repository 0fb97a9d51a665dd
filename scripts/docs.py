"""Write docs/configuration.md from the configuration models: `python scripts/docs.py`."""

from collections.abc import Iterable
from pathlib import Path

from prefloop.configs.describe import Key, describe, stage_keys
from prefloop.configs.pipeline import STAGES, RecipeConfig
from prefloop.configs.shared import Config

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """\
# Configuration

<!-- Written by scripts/docs.py from src/prefloop/configs; change the docstrings there. -->

A recipe is one TOML file: keys of the recipe at the top, then a section per stage. `--set KEY=VALUE` overrides any
key (`--set ppo.kl.target=4`); values are TOML, and what is no TOML value is a string. An unknown key or a value of the
wrong type stops the command before anything runs. A section's table, given in part, keeps that stage's other defaults.
A stage's empty inputs are filled from the run folders of the stages before it.
"""


def page() -> str:
    """The whole page."""
    sections = [_section("Recipe", RecipeConfig, (key for key in describe(RecipeConfig) if key.name not in STAGES))]
    sections += [_section(f"`[{stage}]`", model, stage_keys(stage)) for stage, model in STAGES.items()]
    return "\n".join([HEAD, *sections])


def _section(title: str, model: type[Config], keys: Iterable[Key]) -> str:
    rows = [f"| `{key.name}` | {key.kind} | {_code(key.default)} | {' '.join(key.help.split())} |" for key in keys]
    about = " ".join((model.__doc__ or "").split())
    return "\n".join(
        [f"## {title}", "", about, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _code(default: str) -> str:
    return default if default in ("required", "the recipe's") else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
