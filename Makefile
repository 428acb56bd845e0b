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

gpu: $(STAMP)
	@$(BIN)/python -m benchmarks.gpu

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e ".[docs]"
	$(BIN)/sphinx-build -W -q docs docs/_build
	@echo "docs/_build/index.html"

clean:
	rm -rf $(VENV) build *.egg-info
