#!/bin/sh
# How version 2 of `bltkit:tiny` is made, step by step; docs/models/ has what is held out, and the figures.
#   sh runs/tiny2.sh TEXT PACKAGES HELD
# TEXT holds english_books, english_books_2, russian_books, chinese_poems and japanese_docs (.jsonl.zst, one document a
# line), PACKAGES the wheels that train, HELD those that are held out. Every step can be stopped and taken up again with
# the same command; on one core all of it takes a day. On a CPU without bf16 units: PRECISION=fp32.
set -eu
TEXT=$(realpath "$1") PACKAGES=$(realpath "$2") HELD=$(realpath "$3")
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${OUT:-runs/out/tiny2}")
PRECISION=${PRECISION:-bf16}
DATA=$OUT/data
mkdir -p "$DATA"

# Text. A quarter of the books is wrapped with LF, a quarter with CRLF.
make() { [ -e "$DATA/$1.jsonl" ] || { shift; "$@"; }; }
for name in english_books english_books_2; do
    make $name python -m scripts.rewrap "$TEXT/$name.jsonl.zst" "$DATA/$name.jsonl"
done
for name in russian_books chinese_poems japanese_docs; do
    make $name python -m scripts.pieces "$TEXT/$name.jsonl.zst" "$DATA/$name.jsonl"
done
make packages python -m scripts.python_packages "$DATA/packages.jsonl" "$PACKAGES"/*.whl --held-out "$HELD"/*.whl --cap 600000
make stdlib python -m scripts.python_packages "$DATA/stdlib.jsonl" --stdlib --held-out "$HELD"/*.whl

# An epoch is 120 MB: 48 % English, 41 % Python, 3 % each of Russian, Chinese and Japanese.
source_of() { printf '{kind="jsonl",paths=["%s/%s.jsonl"],weight=%s}' "$DATA" "$1" "$2"; }
SOURCES="data.sources=[$(source_of 'english_books*' 0.54),$(source_of packages 0.7),$(source_of stdlib 1.0),$(
    source_of russian_books 0.4),$(source_of chinese_poems 0.63),$(source_of japanese_docs 0.525)]"

train() {
    config=$1 out=$2
    shift 2
    blt train "configs/$config.toml" --out "$OUT/$out" --resume "$SOURCES" "data.cache=$OUT/corpus" \
        "trainer.precision=$PRECISION" trainer.threads=1 "$@"
}

# The entropy model of version 1 goes on for 6 MB.
train tiny-entropy entropy trainer.init=bltkit:tiny trainer.seed=2 trainer.max_steps=730 trainer.validate_every=365 \
    checkpoint.dtype=bf16 optim.lr=2e-3 optim.warmup_steps=30 optim.muon={} optim.ema=0.995 \
    'optim.schedule={kind="wsd",decay_fraction=0.3}' optim.min_lr_ratio=0.02
python -m scripts.mix_sample configs/tiny-entropy.toml "$DATA/sample.jsonl" "$SOURCES" "data.cache=$OUT/corpus"
blt calibrate --model "$OUT/entropy" --files "$DATA/sample.jsonl" --patch-bytes 4.5

# 120 MB: four fifths at a constant rate in rows of 2,048 bytes, a fifth at a falling one in rows of 8,192.
train tiny-2 blt "patching.model=$OUT/entropy"

python -m scripts.embed "$OUT/blt" src/bltkit/embedded/tiny
blt check bltkit:tiny
