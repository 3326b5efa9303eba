# make quickstart   set up .venv and run the first recipe        make test        the tests (under 10 minutes)
# make lint         ruff                                         make test-long   the slow ones too
# Set-up runs again only when pyproject.toml or constraints.txt changed. The pip that comes with Python 3.10 needs
# --use-pep517 to build seqeval.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: setup quickstart test test-long lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e '.[offline,dev]'
	@touch $@

quickstart: $(READY)
	$(BIN)/mtnlp finetune recipes/quickstart.yaml

test: $(READY)
	$(PYTEST)

test-long: $(READY)
	$(PYTEST) -m 'slow or not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
