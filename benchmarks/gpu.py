"""The benchmarks of cpu.py on one NVIDIA GPU: rates, shares of its product ceiling, peak GPU memory, and decoding
against generate; TRL too where its Python is named. The options are cpu.py's; writes benchmarks/results/gpu.json."""

import sys

import torch
from cpu import main

if __name__ == "__main__":
    if not torch.cuda.is_available() and not {"-h", "--help"} & set(sys.argv):
        print("There is no NVIDIA GPU that torch can use on this machine, so nothing was measured.", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(device="cuda"))
