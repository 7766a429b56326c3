# Every target makes .venv when it is absent and installs what it needs, once for each pyproject.toml and constraints.txt.
#   make demo            teacher against student, ranked and generated: the gap table and report.html
#   make test            the fast tests: under ten minutes on two cores
#   make test-all        the fast tests, then the long proofs (kills, whole distillations); no GPU needed
#   make check           lint, format, types, import rules
#   make bench           the scripts under benchmarks/
#   make gpu-check       tests and benchmarks that need a CUDA device; exit code 3 where there is none
#   make embedded-pair   the embedded checkpoints again, from the seed, into build/embedded-pair
#   make clean           forget .venv, build/ and the tools' caches
#
# PYTHON=... picks the interpreter. VENV=dir picks the environment.
# PIP_TORCH="--index-url https://download.pytorch.org/whl/cpu" spares a machine without a GPU torch's CUDA libraries.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP_TORCH ?=
BIN := $(VENV)/bin
TORCH := $(shell grep -m1 '^torch==' constraints.txt)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
SOURCES := perplexity_lies suites reports distill
BENCHES = $(sort $(wildcard benchmarks/[a-z]*.py))

.PHONY: demo test test-slow test-all check bench gpu-check embedded-pair clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the largest wheel, and nothing that is resolved later may move it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(INSTALL) $(PIP_TORCH) '$(TORCH)'
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt $(VENV)/.torch
	$(INSTALL) -e '.[all]' -c constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(INSTALL) -e '.[dev]' -c constraints.txt
	@touch $@ $(VENV)/.all

demo: $(VENV)/.all
	$(BIN)/plies demo

# Two processes of one thread each: torch's own threads gain nothing at the size of the tests' models.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not gpu"

test-all: test test-slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev
	@set -e; for script in $(BENCHES); do echo "== $$script"; $(BIN)/python $$script; done

$(VENV)/.fla: $(VENV)/.dev
	$(INSTALL) -e '.[fla]' -c constraints.txt
	@touch $@

gpu-check: $(VENV)/.fla
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)' \
		|| { echo "no CUDA device: nothing was run" >&2; exit 3; }
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/stage_speed.py --device cuda
	@set -e; for name in kda_chunked stage3_speed; do echo "== $$name"; \
		$(BIN)/python benchmarks/$$name.py --device cuda --out benchmarks/results/$$name-cuda.json; done
	@set -e; for name in speed_scoring speed_generation; do echo "== $$name"; \
		$(BIN)/python benchmarks/$$name.py --device cuda --shape qwen3-0.6b --dtype bfloat16 --vocabulary 151936 \
		--out benchmarks/results/$$name-cuda.json; done
	$(BIN)/plies distill run miniature --device cuda --out build/gpu-pair --set teacher.layers=8 --set teacher.hidden_size=384 \
		--set teacher.intermediate_size=1152 --set teacher.head_dim=64 --set student.keep=2 --set defaults.rows=64

embedded-pair: $(VENV)/.all
	$(BIN)/plies distill run miniature --out build/embedded-pair

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
