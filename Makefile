# make demo    slices -> corpus -> model -> embeddings, regions and cell types, on simulated tissue
# make test    lint, types, layering, tests
# Both set up .venv first if need be. On a CUDA machine: make setup TORCH=cuda (remembered by later calls).

PYTHON ?= python3
CHOSEN := $(patsubst .venv/.installed-%,%,$(firstword $(wildcard .venv/.installed-*)))
TORCH ?= $(or $(CHOSEN),cpu)
TORCH_VERSION := 2.13.0
STAMP := .venv/.installed-$(TORCH)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup demo test pytest test-all bench check lint types fmt wheel docs tutorials clean

help:
	@echo "make setup     .venv with everything in it (TORCH=cuda for GPUs, PYTHON=... for another interpreter)"
	@echo "make demo      the whole path on simulated slices, into demo/"
	@echo "make test      lint, types, layering, tests; also called check: it is what CI runs"
	@echo "make test-all  the same with the slow tests"
	@echo "make bench     the benchmarks, in full"
	@echo "make fmt       format and mend what ruff can;  make lint / types  check only"
	@echo "make docs      the documentation, into site/;  make wheel  dist/*.whl"
	@echo "make tutorials the notebooks run again, on the demo's model"
	@echo "make clean     remove caches, dist/ and site/"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@case "$(TORCH)" in cpu|cuda) ;; *) echo "TORCH=$(TORCH): expected cpu or cuda." >&2; exit 1;; esac
	@[ -x $(BIN)/pip ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); expected Python 3.11 or newer. Name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	@rm -f .venv/.installed-*
	@echo "Setting up .venv (minutes the first time): torch $(TORCH_VERSION) for $(TORCH), then the rest ..."
ifeq ($(TORCH),cuda)
	@! $(BIN)/python -m pip freeze -qq | grep -q '^torch==.*+cpu$$' || $(PIP) uninstall -y torch
	@$(PIP) install "torch==$(TORCH_VERSION)"
else
	@$(PIP) install "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || $(PIP) install "torch==$(TORCH_VERSION)" --index-url $(TORCH_CPU_INDEX)
endif
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@$(BIN)/python -W ignore -c 'import numpy; from downstream.diagnostics import umap_places; umap_places(numpy.eye(40), n_cells=40)'  # compiles for a minute the first time, which the first report or test would wait for
	@touch $@

# One thread: its matrices are so small that two wait for each other twice as long as one works.
demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/stofm demo --out demo

test:
	@$(MAKE) --no-print-directory -j3 lint types pytest

# Tests write to memory where that has 4 GB to spare, for disks are slow to sync. A core for every worker: threads that wait for each other on a full
# machine take several times as long. Files go by name, so that those of few but long tests do not come last. What is compiled is kept, for many
# tests start processes.
MEMORY := $(shell df -Pk /dev/shm 2>/dev/null | awk 'END { if ($$4 > 4e6) print "TMPDIR=/dev/shm" }')
pytest: $(STAMP)
	$(MEMORY) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

check: test

test-all: lint types
	$(BIN)/python -m pytest

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)
	$(BIN)/mypy

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)
	$(PIP) wheel --no-deps -w dist .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tutorials: $(STAMP)
	$(BIN)/python docs/tutorials/run.py

clean:
	rm -rf dist site screenshots .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
