"""Decoding by Hugging Face's generate, a step at a time: generate_job.py decode MODEL DATA OPTIONS (see cpu.py).

The prompts and lengths of our_job.py's decoding; a prompt's copies are rows of the batch, as generate has them.
"""

import json
import sys
from typing import Any

import torch
from protocol import prompts_of, serve
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    _, model, data, text = sys.argv[1:5]
    options: dict[str, Any] = json.loads(text)
    torch.set_num_threads(options["threads"])
    dtype = torch.bfloat16 if options["dtype"] == "bf16" else torch.float32
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    size, new = options["prompt_tokens"], options["new_tokens"]
    prompts = [prompt for prompt in prompts_of(data, tokenizer, options) for _ in range(options["group"])]
    tokens = torch.tensor(prompts)

    def step() -> dict[str, float]:
        made = network.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )
        return {"units": made[:, size:].numel()}

    with torch.inference_mode():
        serve(step)


if __name__ == "__main__":
    main()
