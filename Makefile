# make demo     a short tour with the embedded model; pictures go to demo/
# make test     the fast tests, the same examples every time; make test SEED=7 tries other random examples
# make test-all the slow ones too, with a random seed, which is printed; make test-all SEED=7 repeats one
# make check    what CI holds: style, types, layers, and that the documentation site builds
# make docs     the documentation site, in site/
# Every target first makes .venv where it is missing or older than its lists of packages.
# Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Test processes share the cores; a thread pool in each would only make them wait for one another.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q
# Evaluated when a recipe runs, so after the installation; nothing where pytest-xdist is not installed.
SPREAD  = $(shell $(BIN)/python -c "import xdist; print('-n auto --dist loadfile')" 2>/dev/null)

# Without a seed, property tests try the same examples every time (the profile of tests/conftest.py); with one, others.
EXAMPLES = $(if $(SEED),--hypothesis-profile=random --hypothesis-seed=$(SEED))

.PHONY: demo test test-all check docs clean

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh runs/demo.sh

test: $(STAMP)
	$(if $(SEED),@echo "property tests: SEED=$(SEED)")
	$(PYTEST) $(SPREAD) $(EXAMPLES)

test-all: SEED := $(or $(SEED),$(shell $(PYTHON) -c 'import random; print(random.randrange(10**9))'))
test-all: $(STAMP)
	@echo "property tests: SEED=$(SEED)"
	$(PYTEST) $(SPREAD) -m "not network" $(EXAMPLES)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

# Strict: a link or a docstring that cannot be resolved fails the build.
docs: $(STAMP)
	$(BIN)/zensical build --strict --clean

# Trained models (runs/out) and the environment stay.
clean:
	rm -rf build dist demo site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: pip then takes whatever build of that version it was pointed to (say, a CPU one).
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] < (3, 14) else "bltkit needs Python 3.11 to 3.13, and $(PYTHON) is another; say make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
