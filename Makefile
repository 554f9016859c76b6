# `make demo` and `make test`; while you work, `make quick`, `make fuzz`, `make lint` and `make docs`. Each makes what it needs first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick fuzz lint docs
demo: .venv/ready
	$(BIN)/vpl demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2

quick: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not slow"

# each reader for so many seconds, from another seed each day
fuzz: .venv/ready
	VPL_FUZZ_SECONDS=$${SECONDS_EACH:-30} VPL_FUZZ_SEED=$${SEED:-$$(date +%Y%m%d)} $(BIN)/python -m pytest -q tests/test_fuzz.py tests/test_hardness.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/mkdocs build --strict

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# torch first and exactly: looser requests pull gigabytes of CUDA on machines that have no GPU.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[openai,test,dev]"
	touch $@
