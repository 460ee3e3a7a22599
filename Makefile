# make demo   set everything up, train on the embedded moving shapes, sample a GIF grid
# make test   set everything up, run the tests
# make lint   style
# make faults kill, fill, damage and stop for hours; ends with a table (SHARE=0.1 for a tenth of the tries)

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: setup demo test lint faults clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[demo,dev,evaluate]"
	touch $@

demo: setup
	$(RUN) -m eqm_video demo

test: setup
	$(RUN) -m pytest $(TESTS)

faults: setup
	PYTHONPATH=tests:. $(RUN) -m faults --share $(or $(SHARE),1) --out runs/faults

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
