# make demo | test | test-all | lint | bench | wheel-check | help: each installs what it needs into .venv by itself.
# STACK=transformers, in .venv-transformers, takes transformers 5 and its own exporter instead of transformers 4.57 and Optimum.
PYTHON ?= python3
# Processes of the tests: much of them is Python on one core.
WORKERS ?= 2
STACK ?= optimum
VENV_optimum := .venv
VENV_transformers := .venv-transformers
EXTRAS_optimum := cpu,train,optimum,bench,dev
EXTRAS_transformers := cpu,train,export,dev
VENV := $(or $(VENV_$(STACK)),$(error STACK is $(STACK); it must be optimum or transformers))
CONSTRAINTS := constraints-$(STACK).txt
BIN := $(VENV)/bin
# One thread of torch each: threads of several processes on the same cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -q -n $(WORKERS) --dist loadfile
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-short test test-all test-stack test-transformers test-cpus gpu-wheel soak lint bench \
        wheel-check small-model clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): setup.cfg $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[$(EXTRAS_$(STACK))]'
	touch $@

setup: $(STAMP)  ## Create the environment with everything in it

demo: $(STAMP)  ## Fine-tune, export and fill masks on real text (under 4 minutes on 2 cores)
	python examples/demo.py

demo-short: $(STAMP)  ## The same with less training (under 2 minutes)
	python examples/demo.py --short

test: $(STAMP)  ## Run the tests, but for the slow ones (under 8 minutes on 2 cores)
	bash tools/browser.sh
	$(PYTEST)

test-all: $(STAMP)  ## Run all of them: every architecture, trainings, kills, the benchmark, the README
	bash tools/browser.sh
	$(PYTEST) -m "not gpu_wheel and not soak and not cpus"

test-stack:  ## Run the tests of export, training and the pipeline on transformers 5 (under 10 minutes)
	$(MAKE) STACK=transformers test-transformers

test-transformers: $(STAMP)
	$(PYTEST) tests/export tests/training tests/training_text tests/locate/test_checkpoints.py tests/tasks/test_pipeline.py

test-cpus: $(STAMP)  ## Run int8 on emulated processors: AVX2, no AVX, arm64 (needs root once, to install QEMU)
	bash tools/emulators.sh .work/arm64
	python -m pytest -q -m cpus tests/runtime/test_emulated.py

gpu-wheel: $(STAMP)  ## Test what onnxruntime-gpu does where there is no GPU (downloads 250 MB)
	python -m pytest -q -m gpu_wheel

soak: $(STAMP)  ## Run threads, memory, fuzzing, kills and faults in full (an hour)
	python -m pytest -q -s -m soak tests

lint: $(STAMP)  ## Check style and types
	ruff check .
	ruff format --check .
	python tools/type_check.py

bench: $(STAMP)  ## Measure against the transformers pipeline and other engines (hours, on a machine that does nothing else)
	python tools/trained_model.py .work/trained
	python -m mlm_infer.benchmarks.peers --trained .work/trained

wheel-check: $(STAMP)  ## Install the wheel with [cpu] alone into an empty environment and fill a mask there
	bash tools/wheel_check.sh

small-model: $(STAMP)  ## Make the model that ships in the wheel again (half an hour)
	python tools/small_model.py .work/small-model

clean:  ## Remove what the other targets made
	rm -rf .venv .venv-* .work build dist *.egg-info
