#!/bin/sh
# How `bltkit:tiny` is made: entropy model, calibration, BLT, then bf16 weights into the package.
#   sh runs/embedded.sh BOOKS
# BOOKS is English prose (.jsonl.zst, one document a line); the rest is the running Python's standard library, twice an
# epoch. Seeds are 0; the model card (docs/models/tiny.md) has the budget. On a CPU without bf16 units: PRECISION=fp32.
set -eu
BOOKS=$(realpath "$1")
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/out/embedded}
PRECISION=${PRECISION:-bf16}
sources="[{ kind = \"stdlib\", weight = 2.0 }, \"$BOOKS\"]"

blt train configs/tiny-entropy.toml --out "$OUT/entropy" --resume \
    "data.sources=$sources" trainer.max_steps=1800 "trainer.precision=$PRECISION"
blt calibrate --model "$OUT/entropy" --files stdlib "$BOOKS" --patch-bytes 4.5
blt train configs/tiny.toml --out "$OUT/blt" --resume \
    "data.sources=$sources" "patching.model=$OUT/entropy" trainer.max_steps=4200 "trainer.precision=$PRECISION"
python -m scripts.embed "$OUT/blt" src/bltkit/embedded/tiny
blt check bltkit:tiny
