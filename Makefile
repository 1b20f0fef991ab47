# `make demo`, `make page` and `make test` do all of their own set-up, in .venv; PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 4
BIN = $(VENV)/bin
# setuptools warns of every editable install whose folders bear the names of the package's
INSTALL = PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet
DIFFUSERS_REPOSITORY ?= https://github.com/huggingface/diffusers

.PHONY: demo page test test-page test-lowest test-diffusers digits docs style quality clean

demo: $(VENV)/.demo
	$(BIN)/python demo/generate_grid.py

# a page to draw on, at the address that it prints, until Ctrl-C
page: $(VENV)/.page
	$(BIN)/python demo/app.py

# by a process for each core, at most WORKERS; each takes up to 2.5 GB of memory
test: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses $(WORKERS) --dist loadfile

# the page, as its visitors meet it; without a browser on this machine it says so, and tests the rest
test-page: $(VENV)/.test-page
	TEST_PAGE=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/demo

# the lowest versions that setup.py declares; needs a Python 3.10
test-lowest:
	$(MAKE) test VENV=.venv-lowest PYTHON=python3.10 PIP_CONSTRAINT=$(CURDIR)/constraints-lowest.txt

# diffusers' own test mixins on our classes: they are in its repository only, so this fetches the installed version's tag
test-diffusers: $(VENV)/.test
	version=$$($(BIN)/python -c "from importlib.metadata import version; print(version('diffusers'))") && \
	source=.diffusers-source/$$version && \
	{ test -d $$source || git clone --quiet --depth 1 --branch v$$version $(DIFFUSERS_REPOSITORY) $$source; } && \
	HF_HUB_OFFLINE=1 DIFFUSERS_SOURCE=$$source $(BIN)/python -m pytest tests/diffusers_mixins

# trains and judges the embedded checkpoint from nothing, into outputs/digits
digits: $(VENV)/.test
	PYTHON=$(BIN)/python sh examples/digits/run.sh outputs/digits

# the documentation as a site, in outputs/site; warnings are errors
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

style: $(VENV)/.quality
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(VENV)/.quality
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .venv-lowest .diffusers-source build dist outputs src/*.egg-info

# One stamp for each set of packages: made again when the declared dependencies change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python setup.py pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.page $(VENV)/.test $(VENV)/.test-page $(VENV)/.quality $(VENV)/.docs: $(VENV)/.%: $(VENV)/bin/python setup.py pyproject.toml
	$(INSTALL) --editable ".[$*]"
	@touch $@
