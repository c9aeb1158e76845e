# make demo   the whole walkthrough on a small data set made on the spot, with base against tuned at the end
# make test   lint and tests
# make lint   ruff
# make bench  side-by-side measurements (benchmarks/RESULTS.md)
# Each sets itself up in .venv and uses it again the next time.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

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

$(VENV)/ready: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11 ...")'
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@
