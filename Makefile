# geoeco from a fresh clone: `make quickstart`, or `make help`. Needs make, git and a Python 3.12+ (or uv); nothing else.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
# two processes, one test file to a process, so that a file's fixtures are built once; in the order of their names, since
# xdist's own order leaves the files with few and long tests to the end, where one process waits for the other
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
CLUSTER ?= local
BASE := $(VENV)/.installed-base
ALL := $(VENV)/.installed-all

# Tests start many processes, and pip leaves packages uncompiled here: without bytecode each process would compile
# torch and torchgeo anew, 10 to 20 seconds. An empty value is none.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all experiments lint format docs bench clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

quickstart: $(BASE) ## install the base, simulate a small world, run recipes/quickstart.yaml on it
	@test -f quickstart/world/catalog.json || $(BIN)/geoeco demo s2 quickstart/world
	@$(BIN)/geoeco run recipes/quickstart.yaml --out quickstart/run --cluster $(CLUSTER) \
	  --set inputs.imagery.catalog=$(CURDIR)/quickstart/world/catalog.json
	@echo "written below quickstart/run:"
	@cd quickstart/run && find . \( -name '*.tif' -o -name '*.parquet' -o -name '*.zarr' -o -name report.html \) \
	  -prune -print | sed 's|^\./|  |' | sort
	@echo "open quickstart/run/report.html in a browser, the .tif files in QGIS"

# As many processes as a small machine has cores: more threads in each would wait for each other.
test test-all: export OMP_NUM_THREADS ?= 1

test: $(ALL) ## all extras, then the tests that are not slow
	$(BIN)/python -m pytest -m "not slow and not experiment" $(PYTEST_ARGS)

test-all: $(ALL) ## every test, the slow ones too
	$(BIN)/python -m pytest -m "not experiment" $(PYTEST_ARGS)

experiments: $(ALL) ## the runs that print the tables of docs/ (minutes each)
	@$(BIN)/python -m pytest -m experiment -s -n 0 || [ $$? -eq 5 ]  # 5: there is none

lint: $(ALL) ## style, types and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(ALL) ## put the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(ALL) ## the pages below docs/, as HTML in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(ALL) ## geoeco beside its peers (minutes)
	@for script in $(filter-out $(addprefix benchmarks/,harness.py imagery.py),$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

clean: ## remove what the other targets wrote, the environment too
	rm -rf $(VENV) quickstart build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python 3.12+ that can make environments: $PYTHON, the usual names, pyenv's versions; else uv fetches one.
define MAKE_VENV
usable() {
  "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}
for candidate in "$(PYTHON)" python3.12 python3.13 python3.14 python3 python \
    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
  if [ -n "$$candidate" ] && usable "$$candidate"; then exec "$$candidate" -m venv $(VENV); fi
done
if command -v uv >/dev/null 2>&1; then exec uv venv --quiet --seed --python 3.12 $(VENV); fi
echo "geoeco needs Python 3.12+ with venv: install python3.12 and python3.12-venv, or uv (https://docs.astral.sh/uv)" >&2
exit 1
endef
export MAKE_VENV

$(BIN)/python:
	@sh -c "$$MAKE_VENV"

# The stamps go stale when pyproject.toml or constraints.txt change; the extras bring the base with them.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing geoeco into $(VENV)"
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	@touch $@

$(ALL): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing geoeco with all extras into $(VENV) (several GB, mostly torch)"
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[all]"
	@touch $(BASE) $@
