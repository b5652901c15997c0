#!/bin/sh
# Everything that docs/performance.md says about decoding, measured anew: a quarter of an hour on two quiet CPU cores.
#
#     sh runs/decode.sh PROSE CODE [ROWS.jsonl]
#
# PROSE and CODE are files that the embedded model has not seen; rows are appended to ROWS.jsonl.
# THREADS (default 1) are those of both sides: products of one row hardly gain from a second one, and on a machine that
# has other work they wait for each other.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: sh runs/decode.sh PROSE CODE [ROWS.jsonl]" >&2
    exit 2
fi
prose=$1 code=$2 rows=${3:-decode.jsonl}
bench() { blt bench "$@" --threads "${THREADS:-1}" --out "$rows"; }

# Against transformers on the same weights, in the forms that keep fp32's numbers and in those that round.
bench decode --preset 69m --context 1024 --context 4096 --peer transformers --repeats 3 \
    --weights fp32 --weights packed --weights fp16
# Against a Llama with the same global stack, over contexts: what grows is the global cache.
bench decode --preset 69m --context 128 --context 512 --context 1024 --context 4096 --context 16384 \
    --weights fp32 --weights packed --peer llama --repeats 7
# Rounded weights on both sides.
bench decode --preset 69m --context 1024 --weights fp16 --weights bf16 --weights int8 --peer llama --peer-dtype bf16
# Rows side by side.
bench decode --preset 69m --context 128 --context 1024 --batch 1 --batch 4 --batch 16 --weights fp32 --weights packed
bench decode --preset tiny --context 1024 --batch 1 --batch 4 --batch 16 --repeats 7
# Self-speculation with a trained model: identical bytes, sampled and greedy, against a Llama of the same shape.
for temperature in 0.8 0; do
    bench decode --model bltkit:tiny --file "$prose" --file "$code" --prompts 64 --max-bytes 256 \
        --strategy speculative --draft 4 --draft 8 --draft 16 --draft auto --temperature $temperature --peer llama
done
# What the forms cost in bits per byte, and gain in products.
part=$(mktemp)
trap 'rm -f "$part"' EXIT
{ head -c 20000 "$prose"; head -c 20000 "$code"; } > "$part"
bench weights --model bltkit:tiny --file "$part"
