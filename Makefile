# Everything below starts from a bare Python 3.11 or newer: each target makes .venv and installs what it needs into it,
# once; a stamp file remembers, so that a repeat starts at once.
#
#   make demo          trains, exports and calls a model from C: examples/digits
#   make test          the test suite (TESTS="tests/ir -k parser" runs a part)
#   make lint          ruff and the import arrows;  make types: mypy
#   make docs          the documentation, executed, into build/docs
#   make bench         the benchmarks, on this machine
#   make conformance   PyTorch's own operation database against Flambeau (long)

# The first Python on the path that is new enough; `make PYTHON=/path/to/python demo` chooses another.
NEW_ENOUGH = 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	"$$p" -c $(NEW_ENOUGH) >/dev/null 2>&1 && { echo "$$p"; break; }; done)

VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
PIP = @echo "installing into $(VENV) for make $(@F:.%=%): once, about a minute"; \
	$(PY) -m pip install --quiet --disable-pip-version-check

TESTS ?= tests
# Two workers, because each of them uses several threads of its own.
PYTEST_FLAGS ?= -n 2

.PHONY: demo test lint types format docs bench conformance clean
.DEFAULT_GOAL := demo

# The install is editable, so a changed source file needs no new install; changed project files do.
PROJECT := pyproject.toml setup.py

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "Flambeau needs Python 3.11 or newer; none was found (set PYTHON=...)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.examples: $(VENV)/.python $(PROJECT)
	$(PIP) -e ".[examples]"
	@touch $@

# PyTorch, the tests' oracle, goes in by itself and first: nothing else may choose its version.
$(VENV)/.torch: $(VENV)/.python
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(PROJECT)
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.lint: $(VENV)/.python $(PROJECT)
	$(PIP) -e ".[lint]"
	@touch $@

$(VENV)/.docs: $(VENV)/.python $(PROJECT)
	$(PIP) -e ".[docs]"
	@touch $@

$(VENV)/.bench: $(VENV)/.torch $(PROJECT)
	$(PIP) -e ".[bench]"
	@touch $@

demo: $(VENV)/.examples
	$(PY) examples/digits/demo.py

test: $(VENV)/.dev
	$(PY) -m pytest $(PYTEST_FLAGS) $(TESTS)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tests/project/arrows.py

types: $(VENV)/.lint
	$(PY) tests/project/layout.py build/tree
	$(PY) -m mypy

format: $(VENV)/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/.docs
	$(PY) -m sphinx -W --keep-going -b html docs build/docs

bench: $(VENV)/.bench
	$(PY) -m benchmarks

conformance: $(VENV)/.dev
	$(PY) -m pytest $(PYTEST_FLAGS) -m conformance tests

clean:
	rm -rf $(VENV) build dist docs/_build docs/_generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf flambeau.egg-info frontend/flambeau.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
