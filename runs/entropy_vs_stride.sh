#!/bin/sh
# Entropy patching against a stride of the same mean patch size, trained alike, 3 seeds each. Prints one line a run.
#   sh runs/entropy_vs_stride.sh MODEL PATCH_BYTES [SOURCE ...]
# MODEL gives the entropy model and the calibrated rule, PATCH_BYTES its mean patch size (from `blt calibrate`).
set -eu
cd "$(dirname "$0")/.."
MODEL=$1
PATCH_BYTES=$2
shift 2
OUT=${OUT:-runs/out/entropy-vs-stride}
STEPS=${STEPS:-500}

sources='"stdlib"'
for path in "$@"; do
    sources="$sources, \"$path\""
done

for seed in 0 1 2; do
    for rule in own "stride:k=$PATCH_BYTES"; do
        name="$(echo "$rule" | cut -d: -f1)-$seed"
        set -- "trainer.seed=$seed" "trainer.max_steps=$STEPS" "trainer.validation_batches=64" "data.sources=[$sources]"
        set -- "$@" "trainer.precision=${PRECISION:-auto}" "patching.model=$MODEL"
        [ "$rule" = own ] || set -- "$@" "patching.rule=$rule"
        printf '%s ' "$name"
        blt train configs/tiny.toml "$@" --out "$OUT/$name" --resume --json
    done
done
