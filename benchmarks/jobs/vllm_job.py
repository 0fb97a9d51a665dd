"""Decoding by vLLM on the CPU, a step at a time: vllm_job.py decode MODEL DATA OPTIONS (see cpu.py).

The prompts and lengths of our_job.py's decoding; prefix caching is on, and what a step before left there is forgotten.
"""

import json
import os
import sys
from typing import Any

from protocol import Meter, prompts_of, serve

OPTIONS: dict[str, Any] = json.loads(sys.argv[4])
CORES = sorted(os.sched_getaffinity(0))[: OPTIONS["threads"]]
os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CORES)),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    from vllm import LLM, SamplingParams  # reads those settings as it is imported

    _, model, data = sys.argv[1:4]
    meter = Meter()
    engine: Any = LLM(
        model=model,
        dtype="bfloat16" if OPTIONS["dtype"] == "bf16" else "float32",
        max_model_len=OPTIONS["prompt_tokens"] + OPTIONS["new_tokens"],
        max_num_seqs=128,
        enable_prefix_caching=True,
    )
    prompts = prompts_of(data, engine.get_tokenizer(), OPTIONS)
    wanted = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(OPTIONS["group"])]
    new = OPTIONS["new_tokens"]
    sampling = SamplingParams(temperature=1.0, max_tokens=new, min_tokens=new, ignore_eos=True)

    def step() -> dict[str, float]:
        engine.reset_prefix_cache()
        made = engine.generate(wanted, sampling, use_tqdm=False)
        return {"units": sum(len(answer.outputs[0].token_ids) for answer in made)}

    serve(step, meter)


if __name__ == "__main__":
    main()
