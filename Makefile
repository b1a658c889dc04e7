# `make quickstart` and `make test` are all a fresh machine needs: both make .venv first.
PYTHON ?= python3
DEVICE := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
INSTALLED := .venv/.installed-$(DEVICE)

.PHONY: quickstart test test-fast browser check setup bench sandbox-base clean

quickstart: setup
	$(BIN)/plyfold quickstart

# Two workers, each with one thread; what shares a server or a trained curriculum stays on one of them.
# What is compiled is kept: the workers and the processes that tests start would compile it again and again.
WORKERS ?= 2
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test: setup
	$(PYTEST)

# Without what is marked slow: for every edit.
test-fast: setup
	$(PYTEST) -m "not slow"

# Chromium for the tests of pages, where this user may install it.
browser:
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium) >/dev/null

setup: $(INSTALLED)

$(INSTALLED): requirements/$(DEVICE).lock.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "plyfold needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/$(DEVICE).lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What ships is what is checked: an editable install hides the mapped rooms from mypy and import-linter.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/check .
	cd build/check && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p plyfold
	cd build/check && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

bench: setup
	$(BIN)/python benchmarks/run.py

sandbox-base: setup
	$(BIN)/python -m plyfold.sandbox.make_base --out sandbox/base

clean:
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
