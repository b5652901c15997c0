"""Grapheme to phoneme: the pronunciation of a word, in 15 languages and 11 scripts."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, NonNegativeInt

from bltkit.eval.dataset_source import ENDINGS, Place, read_text_lines
from bltkit.eval.requests import Answer, Request, generation
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.eval.tasks.writing import drawn, written

Pair: TypeAlias = tuple[str, str]
"""A word, and its phonemes with spaces between them."""


class G2p(Task):
    """Grapheme to phoneme in 15 languages, 8 shots.

    Source: `g2p/*_train.tsv` and `*_dev.tsv` of the SIGMORPHON 2020 shared task 1 (Gorman et al. 2020), WikiPron data.

    Prompt: `word: phonemes` a line, 8 of the language's train file (drawn with `seed`, the same for all of its words),
    then `word:`. Greedy; the line's end ends the answer. `exact_match`: all phonemes equal. `per`, the phoneme error
    rate: insertions, deletions and substitutions (Levenshtein), summed over words, by the phonemes of the references.
    Both are given as the mean over languages, each weighing the same. Normalisation: phonemes are what white space
    separates, as NFC. Known differences from the published task: a few examples instead of training, and the `dev` file
    is evaluated. The BLT paper's grapheme-to-phoneme numbers are of another set (Phonebook, English); they cannot be
    compared.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "exact_match": Metric(),
        "per": Metric(better="lower", highest=None),
    }
    damaged: ClassVar[tuple[str, ...]] = ("word",)
    level: ClassVar[str | None] = "language"
    macro: ClassVar[bool] = True

    kind: Literal["g2p"] = "g2p"
    part: tuple[str, ...] = Field(default=(), description="Codes of languages, such as fre; all where empty.")
    shots: NonNegativeInt = Field(default=8, description="Words of the train file.", examples=[0, 2])

    def items(self, place: Place) -> Iterator[Item]:
        for language, dev in self._files(place):
            words = read_words(dev)
            solved = self._solved(place, language)
            # A bound that tells nothing of the word asked for, and lets each of the file be answered.
            longest = max(len(f" {phonemes}\n".encode()) for _, phonemes in (*solved, *words))
            shots = drawn(solved, self.shots, self.seed)
            for number, (word, phonemes) in enumerate(words):
                fields = {"word": word, "phonemes": phonemes, "shots": shots, "max_bytes": longest}
                yield Item(f"{language}/{number}", fields, {"language": language})

    def requests(self, item: Item) -> tuple[Request, ...]:
        solved = "".join(f"{word}: {phonemes}\n" for word, phonemes in item["shots"])
        return (generation(f"{solved}{item['word']}:", item["max_bytes"], ("\n",)),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        found, gold = phonemes_of(written(answers).text), phonemes_of(item["phonemes"])
        return Grade(
            {"exact_match": float(found == gold), "per": (float(edits(found, gold)), float(len(gold)))},
            {"gold": " ".join(gold), "read": " ".join(found)},
        )

    def _files(self, place: Place) -> list[tuple[str, Path]]:
        """Code and `dev` file of each language asked for."""
        found = {path.name.partition("_dev.tsv")[0]: path for path in place.glob("g2p/*_dev.tsv")}
        if not found:
            raise ValueError(
                f"g2p/LANGUAGE_dev.tsv: not found in {place}; it has no data set on the hub, so give --data DIR"
            )
        return [(code, found[code]) for code in self.chosen_parts(sorted(found))]

    def _solved(self, place: Place, language: str) -> list[Pair]:
        if not self.shots:
            return []
        name = f"g2p/{language}_train.tsv"
        path = place.find(name)
        if path is None:
            raise ValueError(f"{name}: not found in {place}; the {self.shots} shots come from it, or ask for shots=0")
        solved = read_words(path)
        if len(solved) < self.shots:
            raise ValueError(f"{path}: {len(solved)} words, fewer than shots = {self.shots}")
        return solved


def read_words(path: Path) -> list[Pair]:
    """Lines of word, tab, phonemes; no header. Raises ValueError that names file and line."""
    assert path.name.endswith(tuple(f".tsv{ending}" for ending in ENDINGS)), path
    found = []
    for number, line in read_text_lines(path):
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise ValueError(f"{path}, line {number}: expected a word, a tab and its phonemes")
        found.append((columns[0], columns[1]))
    if not found:
        raise ValueError(f"{path}: no words")
    return found


def phonemes_of(text: str) -> list[str]:
    """What white space separates on the first line, as NFC."""
    line = text.strip().partition("\n")[0]
    return unicodedata.normalize("NFC", line).split()


def edits(found: Sequence[str], gold: Sequence[str]) -> int:
    """Insertions, deletions and substitutions that turn one sequence into the other (Levenshtein 1966)."""
    above = list(range(len(gold) + 1))
    for row, one in enumerate(found, 1):
        here = [row]
        for column, other in enumerate(gold, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (one != other)))
        above = here
    return above[-1]
