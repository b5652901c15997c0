#!/bin/sh
# A mixture of sources, from files to a model: entropy model, entropies of all text, threshold, BLT, scores.
#   sh runs/mixture.sh books.jsonl.zst tutorials.jsonl.zst russian.jsonl.zst
#   WEIGHTS="1 2 0.5" sh runs/mixture.sh ...        how often an epoch visits the documents of each source
# A source is a file or glob: text, .jsonl(.gz|.zst) with a field `text`, .parquet. What is scored at the end is what
# training held back of each (2 % of all documents, chosen by their content), its first 100,000 bytes.
# Interrupted? Run it again: what is finished is skipped and the rest goes on where it was.
# `blt` and its python have to be on the PATH. OUT, PATCH_BYTES, PRECISION and STEPS (of each training) stand in for the
# values below.
set -euf
[ $# -gt 0 ] || { echo "usage: sh runs/mixture.sh FILE ..." >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
configs=$repository/configs
OUT=${OUT:-$repository/runs/out/mixture}

texts='' shards='' number=0
for path in "$@"; do
    weight=$(echo "${WEIGHTS:-}" | cut -d ' ' -f $((number + 1)))
    texts="$texts\"$path\", "
    shards="$shards{ kind = \"annotated\", path = \"$OUT/annotated\", source = $number, weight = ${weight:-1} }, "
    number=$((number + 1))
done

# What finds the borders. Weights are for what is learnt, not for where it is cut: here every document counts once.
blt train "$configs/mixture-entropy.toml" --out "$OUT/entropy" --resume "data.sources=[$texts]" \
    "trainer.precision=${PRECISION:-auto}" ${STEPS:+"trainer.max_steps=$STEPS"}

# The entropy of every byte, once. No rule is stored: training cuts the entropies by the one that the model has then.
# fp16 takes half the place, and since `calibrate` puts the threshold between two fp16 numbers, no patch moves.
blt annotate "$configs/mixture-entropy.toml" "data.sources=[$texts]" \
    --entropy "$OUT/entropy" --out "$OUT/annotated" --dtype fp16

# The threshold, stored with the model. No model runs, so another patch size takes seconds.
blt calibrate --model "$OUT/entropy" --annotated "$OUT/annotated" --patch-bytes "${PATCH_BYTES:-4.5}"

blt train "$configs/mixture.toml" --out "$OUT/blt" --resume "data.sources=[$shards]" "patching.model=$OUT/entropy" \
    "trainer.precision=${PRECISION:-auto}" ${STEPS:+"trainer.max_steps=$STEPS"}

python "$repository/scripts/held_out.py" "$OUT/held" "$@"
number=0
for path in "$@"; do
    held=$OUT/held/held-$number.txt
    if [ -s "$held" ]; then
        echo "$path:"
        head -c 100000 "$held" | blt score - --model "$OUT/blt"
    fi
    number=$((number + 1))
done
