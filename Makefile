# make demo | test | browser | timm | loops | exports | triton | torch | lint | bench | gpu | docs: each works from a clean clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt

.PHONY: demo test browser timm loops exports triton torch lint bench gpu docs clean

$(STAMP): pyproject.toml .ci/torch_for_this_machine.py .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/torch_for_this_machine.py
	$(BIN)/python $(INSTALL) -e ".[st,test,dev,bench]"
	touch $@

demo: $(STAMP)
	$(BIN)/hyperst demo --output demo

# A file at a time, in two processes.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# What brings torchvision is kept out of $(VENV).
build/with-%/.installed: $(STAMP) .ci/on_top.py
	$(BIN)/python .ci/on_top.py $(@D) $*
	touch $@

# What tests of the report in a browser need and skip without: Playwright, and Chromium from the system's packages.
browser: $(STAMP)
	$(BIN)/python .ci/browser.py

# Backbones of timm, which `make test` leaves out.
timm: build/with-timm/.installed
	build/with-timm/bin/python -m pytest -q $(addprefix tests/hyperst/test_,timm.py encoders.py encoder_weights.py imagenet_weights.py)

# Training loops of open_clip and sentence-transformers, and an index of faiss, likewise.
loops: build/with-loops/.installed
	build/with-loops/bin/python -m pytest -q $(addprefix tests/kernels/test_,open_clip.py open_clip_sharded.py sentence_transformers.py retrieval.py)

# What opens exports, squidpy, spatialdata and Vitessce, likewise.
exports: build/with-spatialdata/.installed
	build/with-spatialdata/bin/python -m pytest -q tests/hyperst/test_export_readers.py

# Under another version of Triton: every kernel compiled for every architecture, and the first tests in its interpreter.
TRITON ?= 3.9.0
OTHER := build/triton-$(TRITON)
UNDER := PYTHONPATH="$(CURDIR)/$(OTHER)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
triton: $(STAMP)
	test -d $(OTHER)/triton || $(BIN)/python -m pip install --quiet --no-deps --target $(OTHER) triton==$(TRITON)
	$(UNDER) -n 2 tests/kernels/test_ahead_of_time.py
	TRITON_INTERPRET=1 HYPERST_TEST_ARITHMETIC=contracted $(UNDER) -m smoke tests/kernels/triton

# With another version of PyTorch and the Triton it asks for: hyperst_kernels on a CPU, and the first tests in the interpreter.
# It installs CUDA where that version has no other build.
TORCH ?= 2.11.0
WITH := build/torch-$(TORCH)
ELSEWHERE := ahead_of_time interpreter smoke_selection
torch:
	test -x $(WITH)/bin/python || $(PYTHON) -m venv $(WITH)
	$(WITH)/bin/python -m pip install --quiet torch==$(TORCH) ".[test]"
	$(WITH)/bin/python -m pytest -q tests/kernels $(addprefix --ignore=tests/kernels/test_,$(addsuffix .py,$(ELSEWHERE)))
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(WITH)/bin/python -m pytest -q -m smoke tests/kernels/triton

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Peers that cannot be installed are rows that say so.
bench: $(STAMP)
	-$(MAKE) --no-print-directory build/with-peers/.installed
	build/with-peers/bin/python -m benchmarks.run

# An interpreter that reaches the GPU and has what the tests need is taken as it is; else one is installed, where there is a GPU.
ENVIRONMENT = $(MAKE) --no-print-directory "$(STAMP)"
ON_GPU = import torch, hypothesis, mpmath, numpy, pytest, pytest_timeout, triton; raise SystemExit(not torch.cuda.is_available())
gpu:
	@for python in "$(PYTHON)" python3 "$(BIN)/python"; do \
	  if "$$python" -c "$(ON_GPU)" 2>/dev/null; then exec "$$python" -m benchmarks.gpu; fi; \
	done; \
	if ! command -v nvidia-smi >/dev/null; then echo "no GPU on this machine: nothing to check"; exit 0; fi; \
	$(ENVIRONMENT) && "$(BIN)/python" -m benchmarks.gpu

docs: $(STAMP)
	$(BIN)/python $(INSTALL) -e ".[docs]"
	$(BIN)/python docs/reference/generate.py
	$(BIN)/sphinx-build -W -q docs docs/_build
	@echo "docs/_build/index.html"

clean:
	rm -rf $(VENV) build *.egg-info
