#!/bin/sh
# From nothing to a talking model on 2 cores: entropy model, calibration, BLT. At most 40 minutes.
#   sh runs/tiny.sh                        on the running Python's standard library
#   sh runs/tiny.sh books.jsonl.zst my.txt on that and your own text
# Interrupted? Run it again: finished stages are skipped and the others go on where they were.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/out/tiny-run}
PATCH_BYTES=${PATCH_BYTES:-4.5}

sources='"stdlib"'
files="--files stdlib"
for path in "$@"; do
    sources="$sources, \"$path\""
    files="$files --files $path"
done

blt train configs/tiny-entropy.toml "data.sources=[$sources]" --out "$OUT/entropy" --resume
blt calibrate --model "$OUT/entropy" $files --patch-bytes "$PATCH_BYTES"
blt train configs/tiny.toml "data.sources=[$sources]" "patching.model=$OUT/entropy" --out "$OUT/blt" --resume
blt check "$OUT/blt"
blt generate "def main(" --model "$OUT/blt" --max-bytes 200 --seed 0
