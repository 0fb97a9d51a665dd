"""Decoding by Hugging Face's generate, a step at a time: generate_job.py decode MODEL PROMPTS OPTIONS (see cpu.py).

The prompts and lengths of our_job.py's decoding; a prompt's copies are rows of the batch, as generate has them.
"""

from typing import Any

import torch
from protocol import Meter, decoding_inputs, serve_decoding
from transformers import AutoModelForCausalLM


def main() -> None:
    meter = Meter()
    model, prompts, options = decoding_inputs()
    torch.set_num_threads(options["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options["dtype"] == "bf16" else torch.float32
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()
    tokens = torch.tensor([prompt for prompt in prompts for _ in range(options["group"])], device=device)

    def decode(new: int) -> int:
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
        serve_decoding(decode, options, meter)


if __name__ == "__main__":
    main()
