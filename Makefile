# Everything a checkout needs. `make demo` and `make test` set up first; a finished set-up costs nothing.
#   EXTRA=gpu  installs vLLM and FAISS for NVIDIA GPUs instead of their CPU builds.

EXTRA  ?= cpu
CONFIG ?= configs/demo.yaml
# vLLM's CUDA build has no engine for a CPU: with it the demo's engine takes the GPU, and nothing else does.
DEMO   := $(if $(filter gpu,$(EXTRA)),engine.resources.num_gpus=1 engine.resources.num_cpus=1 tune.resources.export_check=transformers)
# The first of these that is there and works; the CPU wheels' pins were made for 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)

# uv does not read pip's settings, and the user's wheels or mirror may be named there.
PIP_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
PIP_INDEX_URL  ?= $(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null)
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
# As pip does: trust the certificates that the system trusts, a company's proxy among them.
export UV_SYSTEM_CERTS ?= 1
# The CPU build of torch is in PyTorch's own index, unless the user has the wheel at hand.
ifeq ($(EXTRA)$(UV_FIND_LINKS),cpu)
TORCH := --torch-backend=cpu
endif

UV  := .uv/bin/uv
BIN := .venv/bin
READY := .venv/ready-$(EXTRA)
NODE_CLIENT := .venv-clients/node_modules/openai/package.json

# Two processes, each of which takes the next tests that share something when it has done some: tests/conftest.py.
SIDE_BY_SIDE := --numprocesses=2 --dist=loadscope --no-loadscope-reorder

BENCHMARKS := rows kernel_peers near_duplicates form_only embed neighbors train synthesis

.PHONY: help setup demo test test-all check bench bench-all gpu nightly clients format lock clean
help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## install everything into .venv

demo: $(READY) ## the whole loop on the bundled corpus, ending with a report
	@$(BIN)/python jobs/pipeline.py --config $(CONFIG) $(DEMO)

test: $(READY) ## the tests, in two processes (TESTS=tests/unit for a part, in one)
	@$(if $(TESTS),,$(MAKE) --silent clients || echo "programs of others do not install: tests that need them are skipped")
	@$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),$(SIDE_BY_SIDE)) -m "not long"

test-all: $(READY) ## all tests: also the long forms of those that kill processes
	@$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),$(SIDE_BY_SIDE))

check: $(READY) ## style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(BIN):$$PATH" lint-imports

bench: $(READY) $(if $(filter neighbors train kernel_peers,$(NAME)),.venv/ready-bench) ## us beside a peer: NAME=neighbors|embed|train|…, ARGS=--quick
	@$(BIN)/python benchmarks/$(NAME).py $(ARGS)

bench-all: $(READY) .venv/ready-bench ## all of them in their quick forms, into runs/bench.jsonl
	@mkdir -p runs; failed=; for name in $(BENCHMARKS); do echo "$$name"; \
	  $(BIN)/python benchmarks/$$name.py --quick >> runs/bench.jsonl || failed="$$failed $$name"; done; \
	  test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

nightly: $(READY) ## the benchmarks of benchmarks/gates.yaml, against the least ratios there (NAME=rows for one)
	@$(BIN)/python benchmarks/gates.py $(NAME) $(ARGS)

gpu: ## is it right on a GPU, and how fast: ARGS="--piece correct"; needs no Ray and no vLLM
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(ARGS)

clients: .venv-clients/ready $(if $(shell command -v npm),$(NODE_CLIENT)) ## what others wrote and tests need: clients of the endpoint, an S3 server

format: $(READY) ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(UV) ## choose and pin the newest versions that pyproject.toml allows
	$(UV) pip compile pyproject.toml --extra cpu --group dev --python-version 3.11 --no-header --no-annotate $(TORCH) -qUo requirements/cpu.txt
	$(UV) pip compile requirements/clients.in --python-version 3.11 --no-header --no-annotate -qUo requirements/clients.txt
	$(UV) pip compile pyproject.toml --extra gpu --group dev --python-version 3.11 --no-header --no-annotate -qUo requirements/gpu.txt

clean: ## remove the environments; runs/ stays
	rm -rf .venv .venv-clients .uv

$(UV):
	@test -n "$(PYTHON)" || { echo "error: no Python: install Python 3.11 or 3.12, or set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 12) and \
	  f"error: {sys.executable} is Python {v[0]}.{v[1]}: set PYTHON to a Python 3.11 or 3.12")'
	@echo "setting up: uv"
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

$(READY): $(UV) pyproject.toml requirements/$(EXTRA).txt
	@echo "setting up: .venv with requirements/$(EXTRA).txt"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@# Compiled here, once: every Ray worker imports torch, and some users forbid Python to write bytecode.
	@$(UV) pip sync --quiet --compile-bytecode --python .venv $(TORCH) requirements/$(EXTRA).txt
	@$(UV) pip install --quiet --python .venv --no-deps --editable .
	@rm -f .venv/ready-*
	@touch $@

.venv/ready-bench: $(READY) requirements/bench.txt
	@echo "setting up: the peers of requirements/bench.txt"
	@$(UV) pip install --quiet --compile-bytecode --python .venv $(TORCH) -c requirements/$(EXTRA).txt -r requirements/bench.txt
	@touch $@

# OpenAI's client for Node, where there is npm; its next major version wants a newer Node than distributions have.
$(NODE_CLIENT): .venv-clients/ready
	@echo "setting up: OpenAI's client for Node"
	@npm install --silent --no-fund --no-audit --prefix .venv-clients openai@6.49.0
	@touch $@

.venv-clients/ready: $(UV) requirements/clients.txt
	@echo "setting up: .venv-clients with requirements/clients.txt"
	@test -x .venv-clients/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv-clients
	@$(UV) pip sync --quiet --compile-bytecode --python .venv-clients requirements/clients.txt
	@touch $@
