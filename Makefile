# The repository's doors: `make train`, `make fast`, `make test`, `make lint`, `make docs`. Each makes the environment
# that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Where this is set, each process would compile every module of the package and of the tests again.
export PYTHONDONTWRITEBYTECODE :=

# A file's tests share what they have trained, and stay in one process.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: train fast test test-slow test-long test-both test-cluster test-gpu lint docs notebook clean

train: $(VENV)/.installed
	$(BIN)/python launch/train.py --config digits --checkpoint.keep 0

# What needs no process but its own, and takes no second.
fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not heavy and not slow" $(foreach folder,parity dist e2e gpu cluster slow,--ignore tests/$(folder))

# All but the slow ones.
test: $(VENV)/.installed-dev
	$(PYTEST)

# The slow ones, first those that may run side by side.
test-slow: test-long test-cluster

test-long: $(VENV)/.installed-dev
	$(PYTEST) -m slow --timeout 900 --ignore tests/cluster

# `test` and `test-long` in one: files whose tests are in both train what these share once.
test-both: $(VENV)/.installed-dev
	$(PYTEST) -m "" --timeout 900 --ignore tests/cluster

# Ray, SLURM and two machines in small on this one: the last two want root, and all want the machine for themselves.
test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --timeout 900 tests/cluster

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# What the cells of docs/first_run.ipynb show, for the site.
notebook: $(VENV)/.installed-dev
	$(BIN)/python docs/run_notebook.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
