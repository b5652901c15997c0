#!/bin/sh
# How `bltkit:tiny` and `bltkit:tiny-d` were made, step by step; docs/models/ has the figures.
#   sh runs/embedded.sh BOOKS.jsonl.zst
# BOOKS is English prose, one document a line; the rest is the running Python's standard library. The second half of
# the way exists because the books are one line a paragraph: a model of them alone finds every wrapped line and every
# carriage return a surprise (docs/log.md). On a CPU without bf16 units: PRECISION=fp32.
set -eu
BOOKS=$(realpath "$1")
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/out/embedded}
PRECISION=${PRECISION:-bf16}
mkdir -p "$OUT"

train() {
    config=$1 out=$2
    shift 2
    blt train "configs/$config.toml" --out "$OUT/$out" --resume "trainer.precision=$PRECISION" "$@"
}

plain="data.sources=[{ kind = \"stdlib\", weight = 2.0 }, \"$BOOKS\"]"
train tiny-entropy entropy-1 "$plain" trainer.max_steps=1800
train tiny blt-1 "$plain" "patching.model=$OUT/entropy-1" patching.rule=threshold:threshold=2.2236328125 \
    trainer.max_steps=1273 optim.schedule_steps=4200

[ -e "$OUT/books.jsonl" ] || python -m scripts.rewrap "$BOOKS" "$OUT/books.jsonl"
train tiny-entropy entropy-2 "trainer.init=$OUT/entropy-1" trainer.seed=1 trainer.max_steps=350 checkpoint.dtype=bf16 \
    optim.lr=1.5e-3 optim.warmup_steps=20 "data.sources=[{ kind = \"stdlib\", weight = 2.0 }, \"$OUT/books.jsonl\"]"
blt calibrate --model "$OUT/entropy-2" --files stdlib "$OUT/books.jsonl" --patch-bytes 4.5
train tiny blt-2 "trainer.init=$OUT/blt-1" trainer.seed=1 trainer.max_steps=2800 "patching.model=$OUT/entropy-2" \
    optim.lr=2.2e-3 optim.warmup_steps=50 "data.sources=[{ kind = \"stdlib\", weight = 2.5 }, \"$OUT/books.jsonl\"]"

python -m scripts.embed "$OUT/blt-2" src/bltkit/embedded/tiny
blt check bltkit:tiny

train tiny-d blt-d trainer.seed=2 "data.sources=[{ kind = \"stdlib\", weight = 2.5 }, \"$OUT/books.jsonl\"]"
python -m scripts.embed "$OUT/blt-d" src/bltkit/embedded/tiny-d
blt check bltkit:tiny-d
