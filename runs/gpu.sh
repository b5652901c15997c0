#!/bin/sh
# All that a GPU has to show, in ten minutes: the `gpu` tests, then decoding and training of three shapes in bf16.
#
#     sh runs/gpu.sh DIRECTORY
#
# Rows go to DIRECTORY/decode.jsonl and train.jsonl, the tests' report to DIRECTORY/tests.txt. A step that fails or runs
# out of its minutes is named in DIRECTORY/failed.txt, and the others still run.
set -u
if [ $# -ne 1 ]; then
    echo "usage: sh runs/gpu.sh DIRECTORY" >&2
    exit 2
fi
out=$1
mkdir -p "$out" || exit 2
: > "$out/failed.txt"
limited() { # NAME SECONDS COMMAND...
    name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" || echo "$name: exit status $?" | tee -a "$out/failed.txt" >&2
}

limited tests 150 sh -c "python -m pytest -q -m gpu -n 0 > '$out/tests.txt' 2>&1"
for shape in 69m 400m 1b; do
    limited "decode $shape" 60 blt bench decode --preset $shape --device cuda --weights fp32 --weights bf16 \
        --context 1024 --repeats 3 --seconds 1 --max-bytes 64 --out "$out/decode.jsonl"
    limited "train $shape" 80 blt bench train --preset $shape --device cuda --context 4096 --batch 2 \
        --repeats 3 --seconds 1 --out "$out/train.jsonl"
done
test ! -s "$out/failed.txt"
