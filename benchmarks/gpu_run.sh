#!/usr/bin/env bash
# Everything this project claims of a GPU, measured by one command that needs no network; benchmarks/gpu_run.py --help.
#
#     bash benchmarks/gpu_run.sh                             all parts on one card, at most 9 minutes
#     bash benchmarks/gpu_run.sh --parts a b --minutes 4
#     PYTHON=.venv/bin/python bash benchmarks/gpu_run.sh --device cpu --quick      does the run itself work?
#
# PYTHON  any Python 3.11 or newer with a torch that sees the card; default python3
# OUT     where summary.md, results.json, log.txt and the small SAM go; default gpu_run
set -euo pipefail
export OUT="${OUT:-gpu_run}"
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_run.py" "$@"
