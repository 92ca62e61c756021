# Two commands do everything on a fresh machine:  make quickstart   and   make test
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONSTRAINTS ?= $(shell $(PYTHON) -c "import sys; print('constraints.txt' if sys.version_info >= (3, 12) else 'constraints-floor.txt')")
SEEDS  ?= 5

.PHONY: quickstart test test-all test-slow soak lint check docs reproduce clean constraints

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[test,lint]"
	touch $@

quickstart: $(VENV)/.installed        ## the whole workflow on the embedded default, then a report to open
	$(BIN)/rlhf-jax quickstart

test: $(VENV)/.installed              ## the tests, those that take a second or so each: all rooms in four minutes
	$(BIN)/python -m pytest -m "not slow and not longer" --numprocesses 2 --dist loadfile

test-all: $(VENV)/.installed          ## all tests but the minutes-long ones
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed         ## minutes-long suites: kill and resume, parity with torch where it is installed
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

soak: $(VENV)/.installed              ## the long forms of the fuzz, kill and layout suites: one to two hours on two cores
	RLHF_JAX_SOAK=1 $(BIN)/python -m pytest tests/fuzz tests/workflow/test_kill.py tests/plan/test_prove.py tests/docs/test_pages.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test-all                  ## what a commit must pass

docs: $(VENV)/.installed              ## the site, build/site; a dead link or an unknown name ends it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reproduce: $(VENV)/.installed         ## the quickstart over SEEDS seeds, summarised in docs/results/quickstart.md
	$(BIN)/rlhf-jax sweep --config configs/quickstart.yaml --output_dir runs/reproduce --seeds $(SEEDS) \
	  --page docs/results/quickstart.md

constraints:                          ## the file of versions that fits PYTHON
	@echo $(CONSTRAINTS)

clean:
	rm -rf runs $(VENV)
