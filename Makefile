# make demo | test | lint | bench | gpu | docs: each works from a clean clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench gpu docs clean

$(STAMP): pyproject.toml .ci/torch_for_this_machine.py .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/torch_for_this_machine.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e ".[st,test,dev,bench]"
	touch $@

demo: $(STAMP)
	$(BIN)/hyperst demo --output demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Peers that cannot be installed are rows that say so.
bench: $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e ".[peers]"
	$(BIN)/python -m benchmarks.run

# An interpreter that reaches the GPU and has what the tests need is taken as it is; else one is installed, where there is a GPU.
INSTALL = $(MAKE) --no-print-directory "$(STAMP)"
ON_GPU = import torch, hypothesis, mpmath, numpy, pytest, pytest_timeout, triton; raise SystemExit(not torch.cuda.is_available())
gpu:
	@for python in "$(PYTHON)" python3 "$(BIN)/python"; do \
	  if "$$python" -c "$(ON_GPU)" 2>/dev/null; then exec "$$python" -m benchmarks.gpu; fi; \
	done; \
	if ! command -v nvidia-smi >/dev/null; then echo "no GPU on this machine: nothing to check"; exit 0; fi; \
	$(INSTALL) && "$(BIN)/python" -m benchmarks.gpu

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e ".[docs]"
	$(BIN)/sphinx-build -W -q docs docs/_build
	@echo "docs/_build/index.html"

clean:
	rm -rf $(VENV) build *.egg-info
