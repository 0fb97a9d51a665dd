"""What this machine can do at best, measured in turn with the jobs: ceiling_job.py JOB MODEL DATA OPTIONS (see cpu.py).

A training job's ceiling is the rate of plain products; of decoding (see protocol.Inputs) the tokens/s if the prefill
ran at that rate, every further token at that of packed products, and nothing else took time. OPTIONS: dtype, threads,
device, seconds of a measurement.
"""

from __future__ import annotations

import json
import sys

import torch
from ceiling import Linears, product_gflops
from protocol import Inputs, Meter, serve

from prefloop.models.load import load_model


def main() -> None:
    job, model = sys.argv[1:3]
    options = json.loads(sys.argv[4])
    torch.set_num_threads(options["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options["dtype"]]
    device, budget = options["device"], options["seconds"]
    meter = Meter()

    def products() -> float:
        return product_gflops(dtype, device, budget)

    if job != "decode":
        serve(lambda _: {"units": 0, "seconds": 1.0, "gflop": products()}, meter)
        return
    linears, inputs = Linears.of(load_model(model, dtype=dtype, device=device).model), Inputs.read()

    def decoding(word: str) -> dict[str, float]:
        prompts, group = inputs.shapes[word]
        rows, tokens, new = len(prompts) * group, sum(map(len, prompts)), options["new_tokens"]
        step = linears.seconds(rows, device, budget)
        return {"units": rows * new, "seconds": linears.decoding(products(), step, tokens, len(prompts), new)}

    serve(decoding, meter)


if __name__ == "__main__":
    main()
