.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
# What the demo trains and at which size it is converted; `make demo-run` in the tests
# replaces both by something tiny.
DEMO_FLAGS ?= --data=digits
DEMO_SIZE ?= 48
BIN := $(VENV)/bin
# Each process takes one half of the tests, and what the other has left when it is done.
PARALLEL ?= --numprocesses 2 --dist worksteal
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt

WEB := tflite/web/node_modules/.package-lock.json

WEB_SAMPLE := examples/web/node_modules/.package-lock.json

# MediaPipe needs other versions of packages than TensorFlow's tools.
MEDIAPIPE := $(VENV)/mediapipe

.PHONY: help demo demo-run web mediapipe test test-all test-arm lint docs format clean

help:  ## Show this help.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[tflite]'
	@touch $@

$(VENV)/.dev: setup.py constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo  ## Install, train on the digits, convert, measure: runs/demo/report.html.
	@$(MAKE) --no-print-directory demo-run PYTHON=$(BIN)/python

# The steps of the demo, with any Python that has the `tflite` extra.
demo-run:
	$(PYTHON) train/main.py $(DEMO_FLAGS) --workdir=$(RUN)
	$(PYTHON) tflite/convert.py --model=$(RUN)/best.keras --size=$(DEMO_SIZE) \
	    --output_dir=$(RUN)
	$(PYTHON) tflite/benchmark.py $(RUN)/best_$(DEMO_SIZE)_fp32.tflite \
	    --output=$(RUN)/latency.jsonl
	$(PYTHON) tflite/run_report.py --workdir=$(RUN) \
	    --tflite=$(RUN)/best_$(DEMO_SIZE)_fp32.tflite

# The runtime of the page of `benchmark.py --target=browser`; npm checks its hashes.
$(WEB): tflite/web/package-lock.json
	@command -v npm >/dev/null || { echo "The page takes npm, from nodejs.org."; exit 1; }
	npm ci --prefix tflite/web --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(WEB_SAMPLE): examples/web/package-lock.json
	npm ci --prefix examples/web --ignore-scripts --no-audit --no-fund --silent
	@touch $@

web: $(WEB)  ## Install what measuring in a browser needs (takes npm).

$(MEDIAPIPE)/.installed: constraints-mediapipe.txt | $(BIN)/python
	$(BIN)/python -m venv $(MEDIAPIPE)
	$(MEDIAPIPE)/bin/pip install --quiet --constraint constraints-mediapipe.txt \
	    mediapipe pillow
	@touch $@

mediapipe: $(MEDIAPIPE)/.installed  ## Install MediaPipe, for its tests and samples.

# Without npm the tests of the browser are skipped, and say so.
test test-all: $(if $(shell command -v npm),$(WEB) $(WEB_SAMPLE)) $(MEDIAPIPE)/.installed

test: $(VENV)/.dev  ## Install what the tests need and run them.
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.dev  ## The slow tests too.
	$(BIN)/python -m pytest $(PARALLEL) -m ''

test-arm: $(VENV)/.dev  ## Run files on an emulated ARM CPU (takes Debian 12).
	REQUIRE_ARM=1 $(BIN)/python -m pytest -m slow -s tests/tflite/test_arm.py

lint: $(VENV)/.dev  ## Check style and types, as CI does.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.docs: setup.py constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@

# With `--quiet`, `--strict` would not count the warnings.
docs: $(VENV)/.docs  ## Build the documentation site: site/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev  ## Mend style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove runs and caches, but not the environment.
	rm -rf runs build site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
