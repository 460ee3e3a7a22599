# make demo   set everything up, train on the embedded moving shapes, sample a GIF grid
# make test   set everything up, run the tests
# make lint   style
# make docs   the site of the documentation in runs/site; a broken link is an error
# make options  write the options of all commands into eqm_video/assets/options.json, after a change of an option
# make faults kill, fill, damage and stop for hours; ends with a table (SHARE=0.1 for a tenth of the tries)

# Where it is set, every process of the tests would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Compiled when imported: a fifth of the 19,000 files ever is.
INSTALL = $(RUN) -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt

.PHONY: setup demo test lint docs options faults clean

setup: $(VENV)/.installed

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[dev,evaluate,lora]"
	touch $(VENV)/.demo $@

demo: $(VENV)/.demo
	$(RUN) -m eqm_video demo

test: setup
	$(RUN) -m pytest $(TESTS)

options: setup
	$(RUN) -m eqm_video.cli.snapshot

faults: setup
	PYTHONPATH=tests:. $(RUN) -m faults --share $(or $(SHARE),1) --out runs/faults

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

docs: setup
	$(INSTALL) -e ".[docs]"
	$(RUN) docs/site/build.py runs/site

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
