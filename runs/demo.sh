#!/bin/sh
# A short tour with the embedded model, no download: patches, every patching scheme, generation, a score.
# `make demo` runs it; it takes a minute or two on two CPU cores and leaves its pictures in demo/.
set -eu
cd "$(dirname "$0")/.."
mkdir -p demo

sentence="Daenerys Targaryen is in Game of Thrones, a fantasy epic by George R.R. Martin."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "1. Where the next byte is hard to guess, a patch begins"
blt patch "$sentence" --model bltkit:tiny --plot demo/patches.png

say "2. The same bytes under every scheme of the paper"
blt patch "$sentence" --model bltkit:tiny --compare

say "3. Generation, byte by byte"
blt generate "def read_lines(path):" --model bltkit:tiny --max-bytes 200 --seed 0
blt generate "It was late in the evening when" --model bltkit:tiny --max-bytes 200 --seed 0

say "4. How well the model predicts Python that it has not seen: bits per byte"
blt score --file src/bltkit/patches.py --model bltkit:tiny

say "Done. The picture of the patches is demo/patches.png"
