"""A training job by TRL, a step at a time: trl_job.py JOB MODEL DATA OPTIONS (see cpu.py, which calls it).

OPTIONS is JSON: batch, max_length, group, new_tokens, threads, dtype and setting: "default"; "best" without gradient
checkpointing, faster where memory suffices; "bf16" that with pure bf16 weights, in which small updates round away.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from protocol import Meter, settle
from transformers import TrainerCallback

OPTIONS = json.loads(sys.argv[4])


class Steps(TrainerCallback):
    """Holds the trainer until the parent asks for a step, and tells it how long that took."""

    def __init__(self, meter, units):
        self.meter, self.units, self.began = meter, units, 0.0

    def on_train_begin(self, *_, **__):
        self.meter.say(ready=1)

    def on_step_begin(self, args, state, control, **_):
        if not self.meter.wanted():
            self.meter.finish()
            os._exit(0)
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        settle()
        self.meter.say(units=self.units, seconds=time.perf_counter() - self.began)


def main() -> None:
    job, model, data = sys.argv[1:4]
    torch.set_num_threads(OPTIONS["threads"])
    meter = Meter()
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").split("\n") if line]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "bf16": OPTIONS["dtype"] == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "per_device_train_batch_size": OPTIONS["batch"],
        "learning_rate": 1e-6,
        "num_train_epochs": 100,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    if OPTIONS["setting"] != "default":
        common["gradient_checkpointing"] = False
    if OPTIONS["setting"] == "bf16":
        common["model_init_kwargs"] = {"dtype": "bfloat16"}
    callbacks = [Steps(meter, OPTIONS["batch"])]
    trainer(job, model, rows, common, callbacks).train()


def trainer(job, model, rows, common, callbacks):
    """The trainer of a job, on the first rows of the data."""
    if job in ("grpo", "rloo"):
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

        config, make = (GRPOConfig, GRPOTrainer) if job == "grpo" else (RLOOConfig, RLOOTrainer)
        args = config(
            **common,
            shuffle_dataset=False,
            num_generations=OPTIONS["group"],
            max_completion_length=OPTIONS["new_tokens"],
        )
        prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
        return make(
            model=model,
            args=args,
            train_dataset=prompts,
            callbacks=callbacks,
            reward_funcs=lambda completions, **_: [float(len(c[0]["content"])) for c in completions],
        )
    common["train_sampling_strategy"] = "sequential"
    if job == "sft":
        from trl import SFTConfig, SFTTrainer

        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        args = SFTConfig(**common, max_length=OPTIONS["max_length"])
        return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), callbacks=callbacks)
    if job == "reward":
        from trl import RewardConfig, RewardTrainer

        args = RewardConfig(**common, max_length=OPTIONS["max_length"])
        return RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), callbacks=callbacks)
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(**common, max_length=OPTIONS["max_length"])
    return DPOTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), callbacks=callbacks)


if __name__ == "__main__":
    main()
