#!/bin/sh
# From nothing to a talking model on 2 cores: entropy model, calibration, BLT. At most 40 minutes.
#   sh runs/tiny.sh                        on the running Python's standard library
#   sh runs/tiny.sh books.jsonl.zst my.txt on that and your own text
# Interrupted? Run it again: finished trainings are skipped and the others go on where they were.
# `blt` has to be on the PATH. OUT, PATCH_BYTES and STEPS (of each training) stand in for the values below.
# The last command looks for defects; its exit status is the script's.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
configs=$repository/configs
OUT=${OUT:-$repository/runs/out/tiny-run}

sources='"stdlib"'
for path in "$@"; do
    sources="$sources, \"$path\""
done

blt train "$configs/tiny-entropy.toml" --out "$OUT/entropy" --resume \
    "data.sources=[$sources]" ${STEPS:+"trainer.max_steps=$STEPS"}
blt calibrate --model "$OUT/entropy" --patch-bytes "${PATCH_BYTES:-4.5}" --files stdlib "$@"
blt train "$configs/tiny.toml" --out "$OUT/blt" --resume \
    "data.sources=[$sources]" "patching.model=$OUT/entropy" ${STEPS:+"trainer.max_steps=$STEPS"}
blt generate "def main(" --model "$OUT/blt" --max-bytes 200 --seed 0
blt check "$OUT/blt"
