# Two commands do everything: `make demo` and `make test`. Both set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
# Processes that `make test` uses: one more than two cores, as some tests mostly wait. Each needs up to 3 GB; servers
# under test have processes of their own besides.
WORKERS ?= 3

.PHONY: help setup demo test lint bench bench-transfer bench-serving bench-resilience bench-training bench-backbones bench-memory \
        bench-drift bench-retrain bench-loop bench-operations constraints clean
.DEFAULT_GOAL := help

help:            ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

setup: $(STAMP)  ## a virtual environment with everything, at the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up in $(VENV): a few minutes, most of it downloading torch"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Perennial needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)   ## the whole loop, live: train, serve, drift, retrain, swap, roll back
	$(BIN)/perennial demo

test: $(STAMP)   ## the whole test suite
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)   ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-transfer bench-serving bench-resilience  ## every benchmark; each writes benchmarks/results/

bench-transfer: $(STAMP)  ## what the built-in checkpoint is worth against random weights and pixels
	$(BIN)/python -m benchmarks.transfer

bench-serving: $(STAMP)  ## how fast Perennial answers, beside its peers and the machine's limit; needs wrk
	$(BIN)/python -m benchmarks.serving --open-loop --soak 100000

bench-training: $(STAMP)  ## how good and how quick training is, beside its peers; needs the shared images, takes hours
	$(BIN)/python -m benchmarks.training

bench-backbones: $(STAMP)  ## every classification network of torchvision: built, trained a step, exported, compared
	$(BIN)/python -m benchmarks.backbones

bench-memory: $(STAMP)  ## memory and seconds of each stage of training on 100,000 images
	$(BIN)/python -m benchmarks.training_memory

bench-drift: $(STAMP)  ## how well drift is told, its cause named and accuracy estimated, beside other methods; digits, and the shared photos
	$(BIN)/python -m benchmarks.drift

bench-retrain: $(STAMP)  ## what a retrain costs, and the service beside it; needs wrk and the shared images
	$(BIN)/python -m benchmarks.retraining

bench-loop: $(STAMP)  ## the whole loop on streams with known changes, beside simpler ways to keep a model fresh; needs the shared images, takes hours
	$(BIN)/python -m benchmarks.loop

bench-operations: $(STAMP)  ## what the operations page costs, beside a million predictions; needs wrk, and chromium for its first paint
	$(BIN)/python -m benchmarks.operations

bench-resilience: $(STAMP)  ## what becomes of predictions when things break, and of answers when there are too many
	$(BIN)/python -m benchmarks.resilience

constraints: $(STAMP)  ## write constraints.txt anew from what is installed now
	$(BIN)/python -m pip freeze --exclude-editable > constraints.new
	@echo "compare constraints.new with constraints.txt, keep the comments, commit"

clean:           ## remove what setup and the tests made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
