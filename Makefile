# `make demo` and `make test` are all a newcomer needs: each builds .venv first, from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint types docs hooks bench bench-check clean

demo: $(READY)
	$(BIN)/noisescape demo

# one thread a worker: two workers with two threads each get in one another's way
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# the site, in build/site: a broken link or reference is an error, and it is opened in a browser
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	NOISESCAPE_SITE=build/site OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/built_site

# lint and types before every commit
hooks: $(READY)
	$(BIN)/pre-commit install

# Against other libraries, in an environment of its own; some hours on two cores. NAMES="steps toy" runs some of it.
BENCH := benchmarks/.venv

bench: $(BENCH)/.ready
	$(BENCH)/bin/python -m benchmarks.run $(NAMES)

# the same into a scratch folder, then ratios against the committed ones
bench-check: $(BENCH)/.ready
	$(BENCH)/bin/python -m benchmarks.run --out build/bench $(NAMES)
	$(BENCH)/bin/python -m benchmarks.check build/bench

$(BENCH)/.ready: pyproject.toml constraints.txt benchmarks/rivals.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BENCH)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable '.[transformers]'
	$(BENCH)/bin/pip install --quiet --no-deps --requirement benchmarks/rivals.txt
	touch $@

# torch comes first and alone: its pinned version has a build without CUDA, which the rest then reuses. What pip would
# compile takes over a minute, most of it for modules that are never imported.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noisescape needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
