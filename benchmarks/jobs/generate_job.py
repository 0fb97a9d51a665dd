"""Decoding by Hugging Face's generate, a step at a time: generate_job.py decode MODEL SHAPES OPTIONS (see cpu.py).

The prompts and lengths of our_job.py's decoding; a prompt's copies are rows of the batch, as generate has them.
"""

from typing import Any

import torch
from protocol import Inputs, Meter, serve_decoding
from transformers import AutoModelForCausalLM


def main() -> None:
    meter = Meter()
    inputs = Inputs.read()
    torch.set_num_threads(inputs.options["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if inputs.options["dtype"] == "bf16" else torch.float32
    network: Any = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=dtype).to(device).eval()

    def decode(prompts: list[list[int]], group: int, new: int) -> int:
        tokens = torch.tensor([prompt for prompt in prompts for _ in range(group)], device=device)
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
        return int(made[:, tokens.shape[1] :].numel())

    with torch.inference_mode():
        serve_decoding(decode, inputs, meter)


if __name__ == "__main__":
    main()
