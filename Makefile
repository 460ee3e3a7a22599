# make demo   set everything up, train on the embedded moving shapes, sample a GIF grid
# make test   set everything up, run the tests
# make lint   style

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: setup demo test lint clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[demo,dev]"
	touch $@

demo: setup
	$(RUN) -m eqm_video demo

test: setup
	$(RUN) -m pytest $(TESTS)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
