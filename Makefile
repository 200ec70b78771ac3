# make demo   the whole story on a small scale: data, training, fine-tuning, evaluation, a denoised video
# make test   format, lint, types and tests
# make docs   the documentation as a site, site/index.html
# Demo and test make their own environment in .venv/ first (make setup does that alone).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Where a GPU is, its CUDA kernels are built too; without a compiler there are none, and the reference is used.
# `make wheel` builds for all architectures. See docs/install.md.
GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd';')
COMPILER := $(shell command -v c++ || command -v g++ || command -v clang++)
export STAN_BUILD ?= $(if $(GPU),auto,$(if $(COMPILER),cpu,auto))
export STAN_CUDA_ARCHS ?= $(or $(GPU),9.0)
WORKERS ?= 2
NATIVE_SOURCES := $(shell find stan/ops/csrc -type f 2>/dev/null)

.PHONY: setup demo test test-all lint docs wheel clean

setup: $(VENV)/.ready

$(VENV)/.installed: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $(PYTHON) is older than 3.10; name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# the pinned versions need Python 3.11; an older one gets what it can have
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' && cp constraints.txt $(VENV)/requirements.txt \
		|| sed 's/==.*//' constraints.txt > $(VENV)/requirements.txt
	$(PIP) install -q -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.ready: $(VENV)/.installed pyproject.toml setup.py $(NATIVE_SOURCES)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'import cv2' || \
		{ echo "make: OpenCV cannot be loaded; on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@

demo: setup
	$(BIN)/stan demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The site needs none of the package's own requirements: docstrings are read, not imported.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html; for its search serve the folder: python3 -m http.server -d site"

$(VENV)/.docs: docs/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: the documentation tools need Python 3.11; name another: make docs PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -r docs/requirements.txt
	@touch $@

wheel: $(VENV)/.installed
	rm -rf dist build
	STAN_BUILD=auto STAN_CUDA_ARCHS=all $(PIP) wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

clean:
	rm -rf build dist site *.egg-info stan/ops/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
