# Everything that one does with a checkout; `make help` lists it. No root and no compiler needed.
#   VENV=...    folder of the environment (default .venv)
#   PYTHON=...  interpreter that makes it, 3.10 to 3.12 (default: python3, or the first suitable python3.x)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup lint test test-openmmlab demo docs clean

VENV ?= .venv
is_supported := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
# called, not only found: version managers leave launchers of versions that are not there
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.10,$(shell \
	$(p) -c '$(is_supported)' >/dev/null 2>&1 && echo $(p))) python3)

python := $(VENV)/bin/python
constraints := requirements/constraints.txt
pip_install = $(python) -m pip install --disable-pip-version-check --constraint $(constraints)
ready := $(VENV)/.moe_det-ready
docs_ready := $(VENV)/.moe_det-docs
overlay := .stacks/openmmlab
# a crashed worker is a failed test; xdist would hang on restarting it
PYTEST_ARGS ?= --numprocesses=auto --dist=loadfile --max-worker-restart=0
# one process per core and one thread per process: two of both, on two cores, wait for each other
pytest = OMP_NUM_THREADS=1 $(python) -m pytest $(PYTEST_ARGS)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(ready)  ## make the environment, once: 5 to 10 minutes and 8 GB of disk

$(python):
	@$(PYTHON) -c '$(is_supported)' || { \
		echo "make setup: moe_det needs Python 3.10, 3.11 or 3.12, found $$($(PYTHON) --version 2>&1 || true)." \
			"Name another one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@echo '[1/5] environment in $(VENV) (some seconds)'
	$(PYTHON) -m venv $(VENV)

$(ready): pyproject.toml $(constraints) | $(python)
	@echo '[2/5] torch and torchvision, a fitting pair (5 to 10 minutes, several GB)'
	$(pip_install) torch torchvision
	@echo '[3/5] mmdetection, stack onedl; mmcv is built without compiled operators (about 2 minutes)'
	MMCV_WITH_OPS=0 $(pip_install) onedl-mmengine onedl-mmcv onedl-mmdetection
	@echo '[4/5] moe_det itself, editable, and the tools of its tests (some seconds)'
	$(pip_install) --editable '.[dev]'
	@echo '[5/5] OpenCV without windows: opencv-python needs libGL, which servers lack (some seconds)'
	$(python) -m pip uninstall --quiet --yes opencv-python
	$(pip_install) --quiet --no-deps --force-reinstall opencv-python-headless
	@$(python) -c 'import cv2, moe_det; print(f"moe_det {moe_det.__version__} is ready in $(VENV)")'
	@touch $@

lint: setup  ## ruff: errors, names, quotes, layout; import-linter: the direction of imports; mypy: types
	@$(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --check --quiet .
	@found=$$($(VENV)/bin/lint-imports --no-cache) || { echo "$$found"; exit 1; }
	@found=$$($(VENV)/bin/mypy) || { echo "$$found"; exit 1; }
	@echo 'make lint: clean'

test: setup lint  ## lint, then all tests on the stack onedl
	@PYTHONPATH= $(pytest) || { \
		echo 'make test: FAILED on the stack onedl (the lines above name the tests)'; exit 1; }
	@echo 'make test: all tests passed on the stack onedl'

$(overlay)/.ready: $(constraints) | $(ready)
	@echo 'stack openmmlab (mmengine, mmcv-lite, mmdet) in $(overlay) (about 20 seconds)'
	@rm -rf $(overlay) $(overlay).new
	$(pip_install) --quiet --no-deps --target $(overlay).new mmengine mmcv-lite mmdet 'setuptools<82'
	@mv $(overlay).new $(overlay)
	@touch $@

test-openmmlab: setup $(overlay)/.ready  ## the same tests on the stack openmmlab
	@PYTHONPATH=$(CURDIR)/$(overlay) $(pytest) || { \
		echo 'make test-openmmlab: FAILED on the stack openmmlab (the lines above name the tests)'; exit 1; }
	@echo 'make test-openmmlab: all tests passed on the stack openmmlab'

demo: setup  ## train a small model on synthetic shapes and show which expert sees what
	@$(python) tools/misc/demo.py

$(docs_ready): pyproject.toml $(constraints) | $(ready)
	@echo 'mkdocs-material and mkdocstrings (some seconds)'
	$(pip_install) --quiet --editable '.[docs]'
	@touch $@

docs: setup $(docs_ready)  ## the documentation site, in build/site
	@# with --quiet warnings would not count
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict
	@echo 'make docs: build/site/index.html'

clean:  ## remove caches and build files; the environment, results and data stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find moe_det tests tools configs -name __pycache__ -prune -exec rm -rf {} +
