# Everything sets itself up: .venv is made, and filled with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BINDING := GNU General Public;GPL-2.0;GPL-3.0;AGPL;Affero;SSPL;NonCommercial;Non-Commercial;CC-BY-NC

.PHONY: demo test test-all test-spandrel lint format docs audit clean

demo: $(VENV)/.installed  ## restore the sample archive into out/demo
	$(BIN)/conservator restore --recipe samples/recipe.yaml --source samples/archive --output out/demo --fresh

test: $(VENV)/.installed-dev  ## the test suite
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed-dev  ## the slow tests too
	$(BIN)/python -m pytest

test-spandrel: $(VENV)/.installed-dev  ## models that spandrel loads; it and torchvision stay out of the environment
	$(BIN)/pip install --no-deps --upgrade --target .spandrel -c constraints.txt spandrel torchvision einops
	PYTHONPATH=.spandrel $(BIN)/python -m pytest tests/restoration/test_spandrel.py

lint: $(VENV)/.installed-dev  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## the site, into site/
	$(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

audit: $(VENV)/.installed  ## risky code, licences that bind users, known vulnerabilities of the pinned versions
	$(PIP) --editable '.[audit]'
	$(BIN)/bandit --quiet --recursive --severity-level medium --configfile pyproject.toml pipeline jobs
	$(BIN)/pip-licenses --partial-match --fail-on '$(BINDING)' > /dev/null
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the pinned build then satisfies whatever else asks for torch.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
