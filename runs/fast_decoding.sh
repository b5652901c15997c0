#!/bin/sh
# One family of models trained alike, and all ways of decoding them side by side: `blt study fast-decoding`.
#   sh runs/fast_decoding.sh TEXTS PROSE CODE
# TEXTS is what the family is trained on beside the standard library (a data source), PROSE and CODE are held out: a
# file, and a file or folder of Python. Every member is `bltkit:tiny` trained on for STEPS steps: as it was, and with
# blocks of 4, 8 and 16 bytes at two weights. On a CPU without bf16 units: PRECISION=fp32.
set -eu
[ $# -eq 3 ] || { echo "usage: sh runs/fast_decoding.sh TEXTS PROSE CODE" >&2; exit 2; }
TEXTS=$(realpath "$1") PROSE=$(realpath "$2") CODE=$(realpath "$3")
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/out/fast_decoding}
STEPS=${STEPS:-200}
PRECISION=${PRECISION:-bf16}
PROMPTS=${PROMPTS:-8}
mkdir -p "$OUT"

member() {
    name=$1
    shift
    [ -e "$OUT/$name/model.safetensors" ] || blt train configs/tiny-d.toml --out "$OUT/$name" --resume \
        "trainer.precision=$PRECISION" "trainer.max_steps=$STEPS" data.batch_rows=4 optim.lr=1e-3 optim.tables_lr=2.5e-3 \
        optim.warmup_steps=30 checkpoint.export=end trainer.validation_batches=24 \
        "data.sources=[{ kind = \"stdlib\", weight = 2.5 }, \"$TEXTS\"]" "$@"
    MODELS="$MODELS --model $name=$OUT/$name"
}

MODELS=""
member plain 'objective={ kind = "next-byte" }'
for block in 4 8 16; do
    for weight in 1.0 0.25; do
        member "d$block-w$weight" \
            "objective={ kind = \"block-diffusion\", block = $block, weight = $weight }"
    done
done
# shellcheck disable=SC2086  # a list of options
blt study fast-decoding $MODELS --text "prose=$PROSE" --text "code=$CODE" --prompts "$PROMPTS" --grid full \
    --threads 1 --out "$OUT/study"
