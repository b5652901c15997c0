#!/bin/sh
# Entropy patching against a stride of the same mean patch size, trained alike, 3 seeds each. Prints one line a run.
#   sh runs/entropy_vs_stride.sh MODEL PATCH_BYTES [SOURCE ...]
# MODEL gives the entropy model and the calibrated rule, PATCH_BYTES its mean patch size (from `blt calibrate`).
# OUT, STEPS and PRECISION stand in for the values below; runs that are finished already are not trained again.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
MODEL=$1
PATCH_BYTES=$2
shift 2
OUT=${OUT:-$repository/runs/out/entropy-vs-stride}

sources='"stdlib"'
for path in "$@"; do
    sources="$sources, \"$path\""
done

for seed in 0 1 2; do
    for rule in own "stride:k=$PATCH_BYTES"; do
        name="${rule%%:*}-$seed"
        set -- "trainer.seed=$seed" "trainer.max_steps=${STEPS:-500}" "trainer.precision=${PRECISION:-auto}" \
            "trainer.validation_batches=64" optim.warmup_steps=30 "data.sources=[$sources]" "patching.model=$MODEL"
        [ "$rule" = own ] || set -- "$@" "patching.rule=$rule"
        printf '%s ' "$name"
        blt train "$repository/configs/tiny.toml" "$@" --out "$OUT/$name" --resume --json
    done
done
