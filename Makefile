# make demo   the whole walkthrough on a small data set made on the spot, with base against tuned at the end
# make test   lint and tests
# make lint   ruff
# make bench  side-by-side measurements (benchmarks/RESULTS.md)
# Each sets itself up in .venv, with the versions of requirements.lock, and uses it again the next time.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check -q -c requirements.lock

.PHONY: demo test lint bench clean

demo: $(VENV)/ready
	$(RUN) demo/run_demo.py

test: lint
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/ready-dev
	$(RUN) -m ruff check .

bench: $(VENV)/ready-dev
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(RUN) $$script || exit 1; done

clean:
	rm -rf demo_output

$(VENV)/ready: requirements.txt requirements.lock
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11 ...")'
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(INSTALL) -r requirements-dev.txt
	touch $@
