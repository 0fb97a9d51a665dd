"""How training stages save and continue: the newest whole checkpoint, and metrics cut back to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, Literal

from prefloop.engine.build import require_base
from prefloop.engine.local import LocalLearner
from prefloop.models.checkpoint import latest_checkpoint, read_checkpoint
from prefloop.run import Run
from prefloop.types import Checkpoint


def resume(
    run: Run, learner: LocalLearner, parent: str, critic: LocalLearner | None = None
) -> tuple[int, Mapping[str, Any]]:
    """The first step still to do, and the loop's saved state; (0, {}) for a fresh run."""
    folder = latest_checkpoint(run.path / "checkpoints")
    if folder is None:
        run.rewind(-1)
        return 0, {}
    record = read_checkpoint(folder)
    require_base(folder, record, parent)
    state = learner.load(folder, critic)
    run.rewind(record.step)
    return record.step + 1, state


def save_step(
    run: Run,
    learner: LocalLearner,
    step: int,
    parent: str,
    state: Mapping[str, Any],
    critic: LocalLearner | None = None,
) -> None:
    """Save everything that `step` leaves behind; older resumable checkpoints go once this one is whole."""
    folder = run.checkpoint_folder(step)
    record = Checkpoint(path=str(folder), kind="policy", step=step, parent=parent, config_hash=run.config_hash)
    learner.save(folder, record, state, resumable=True, critic=critic)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def save_final(
    run: Run,
    learner: LocalLearner,
    steps: int,
    parent: str,
    kind: Literal["policy", "reward"],
    details: Mapping[str, Any] | None = None,
) -> str:
    """Save what the stage was for, in compute precision and without optimizer state; returns its path."""
    folder = run.path / "checkpoint"
    record = Checkpoint(
        path=str(folder), kind=kind, step=steps, parent=parent, config_hash=run.config_hash, details=details or {}
    )
    learner.save(folder, record, {}, resumable=False)
    return str(folder)
