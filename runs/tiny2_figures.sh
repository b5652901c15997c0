#!/bin/sh
# Every figure of the card of `bltkit:tiny`, version 2, and its samples, in the order of docs/models/tiny-2.md.
#   sh runs/tiny2_figures.sh MODEL CANTERBURY HELD > figures.txt
# CANTERBURY holds alice29.txt and asyoulik.txt, HELD the wheels that were held out. runs/tiny2.sh has written the rest
# to runs/out/tiny2 (OUT). The long Python files alone are 8.8 MB.
set -eu
MODEL=$1 CANTERBURY=$(realpath "$2") HELD=$(realpath "$3")
[ ! -e "$MODEL" ] || MODEL=$(realpath "$MODEL")
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${OUT:-runs/out/tiny2}")
DATA=$OUT/data FILES=$OUT/held

wheels() { for name; do printf '%s\n' "$HELD/$name"-*.whl; done; }
echo "# what is held out"
python -m scripts.unpack_python "$FILES/eight" $(wheels click jinja2 typer packaging markdown_it_py h11 rich pluggy)
python -m scripts.unpack_python "$FILES/long" $(wheels django sqlalchemy ansible_core) --over 50000
python -m scripts.held_out "$FILES/text" \
    "{kind=\"jsonl\",paths=[\"$DATA/english_books*.jsonl\"],weight=0.54}" "$DATA/packages.jsonl" "$DATA/stdlib.jsonl" \
    "$DATA/russian_books.jsonl" "$DATA/chinese_poems.jsonl" "$DATA/japanese_docs.jsonl"

echo "# two texts"
python -m scripts.compressors "$MODEL" "$CANTERBURY/alice29.txt" "$CANTERBURY/asyoulik.txt"
echo "# eight packages"
python -m scripts.compressors "$MODEL" "$FILES"/eight/*
echo "# Russian, Chinese and Japanese that was held back"
python -m scripts.compressors "$MODEL" "$FILES/text/held-3.txt" "$FILES/text/held-4.txt" "$FILES/text/held-5.txt"

for prompt in 'The old man put down his book and' 'def read_lines(path):
    ' 'В тот вечер он долго'; do
    echo "# samples behind: $prompt"
    for seed in 0 1 2; do
        printf '%s' "$prompt"
        printf '%s' "$prompt" | blt generate - --model "$MODEL" --temperature 0.8 --seed $seed --max-bytes 400
        echo
    done
done

echo "# long files"
python -m scripts.compressors "$MODEL" "$FILES"/long/*
