"""Every test of the store runs on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.store.scene import Scene, scene


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'labels.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def stage(url: str) -> Iterator[Callable[..., Scene]]:
    """Makes the scene of a test: stage(config, comparisons, items, labelers)."""
    made: list[Scene] = []

    def make(*arguments: Any, **named: Any) -> Scene:
        made.append(scene(url, *arguments, **named))
        return made[-1]

    yield make
    for here in made:
        here.store.close()
