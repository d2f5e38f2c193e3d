# Two commands for a fresh machine (Python 3.11, pip, make, gcc; no GPU needed):
#   make demo   sets up and measures the paper's nine networks on the embedded digits
#   make test   sets up and runs linters, types and tests
PYTHON ?= python3
VENV ?= .venv
OUT ?= results
PROCESSES ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := setup.cfg pyproject.toml README.md $(shell find sanrobust -type f -not -name '*.pyc')

.PHONY: demo test check weights clean

demo: $(VENV)/demo.stamp
	$(BIN)/sanrobust rotate --out $(OUT)
	$(BIN)/sanrobust pgd --out $(OUT)

test: $(VENV)/test.stamp check

check:
	$(BIN)/flake8 sanrobust tests
	$(BIN)/mypy
	$(BIN)/pytest -q -n $(PROCESSES) --cov --cov-report=term --durations=10

weights: $(VENV)/demo.stamp
	$(BIN)/sanrobust train --out sanrobust/zoo/weights

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(SOURCES) | $(BIN)/python
	rm -rf build
	$(PIP) install --quiet .
	touch $@

$(VENV)/test.stamp: $(SOURCES) | $(BIN)/python
	rm -rf build
	$(PIP) install --quiet '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .coverage .coverage.*
