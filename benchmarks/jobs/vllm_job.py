"""Decoding by vLLM on the CPU, a step at a time: vllm_job.py decode MODEL PROMPTS OPTIONS (see cpu.py).

The prompts and lengths of our_job.py's decoding; prefix caching is on, and what a step before left there is forgotten.
"""

import os
import sys
from pathlib import Path
from typing import Any

from protocol import Meter, decoding_inputs, serve_decoding

OPENMP = Path(sys.prefix) / "lib" / "libiomp5.so"  # which its manual asks to preload


def main() -> None:
    meter = Meter()
    model, prompts, options = decoding_inputs()
    cores = sorted(os.sched_getaffinity(0))[: options["threads"]]
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(len(cores)),
    }
    from vllm import LLM, SamplingParams  # reads those settings as it is imported

    engine: Any = LLM(
        model=model,
        dtype="bfloat16" if options["dtype"] == "bf16" else "float32",
        max_model_len=options["prompt_tokens"] + options["new_tokens"],
        max_num_seqs=128,
        enable_prefix_caching=True,
    )
    wanted = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(options["group"])]

    def decode(new: int) -> int:
        sampling = SamplingParams(temperature=1.0, max_tokens=new, min_tokens=new, ignore_eos=True)
        engine.reset_prefix_cache()
        made = engine.generate(wanted, sampling, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in made)

    serve_decoding(decode, options, meter)


if __name__ == "__main__":
    if OPENMP.exists() and str(OPENMP) not in os.environ.get("LD_PRELOAD", ""):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": str(OPENMP)})
    main()
