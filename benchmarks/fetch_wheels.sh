#!/usr/bin/env bash
# Download into wheels/ what a machine with torch but without network usually lacks, for gpu_run.sh to find there.
#
#     bash benchmarks/fetch_wheels.sh 3.12                   for Python 3.12 on 64-bit Linux (x86)
#     bash benchmarks/fetch_wheels.sh 3.12 peft psutil       these too, at the versions of requirements.txt
#
# PYTHON  the Python whose pip downloads; default python3
set -euo pipefail
version="${1:?give the Python version of the other machine, e.g. 3.12}"
shift
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
wanted=()
for package in segment-anything pycocotools "$@"; do
    line="$(grep -iE "^$package *([=<>~!]|\$)" "$root/requirements.txt" | cut -d'#' -f1 | tr -d ' ' || true)"
    wanted+=("${line:-$package}")
done
mkdir -p "$root/wheels"
"${PYTHON:-python3}" -m pip download --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "$version" --implementation cp "${platforms[@]}" --dest "$root/wheels" "${wanted[@]}"
ls -l "$root/wheels"
