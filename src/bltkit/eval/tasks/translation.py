"""Translation of single sentences, from one language into another, after a few pairs; BLEU and chrF of the whole."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, field_validator

from bltkit.config import nearest
from bltkit.eval.dataset_source import HubSet, Place, Row, needed, read_rows, read_text_lines
from bltkit.eval.requests import Answer, Request, generation
from bltkit.eval.tasks.languages import name_of
from bltkit.eval.tasks.overlap import bleu, bleu_sums, chrf, chrf_sums, need_sacrebleu, sentence_pieces
from bltkit.eval.tasks.task import Grade, Item, Metric, Numbers, Task
from bltkit.eval.tasks.writing import drawn, written

ENGLISH = "eng_Latn"
SEED_FILES = ("oldi_seed.jsonl", "mt/oldi_seed.jsonl")
FLORES = "openlanguagedata/flores_plus"
FLORES_FILES = ("{split}/{language}.{split}", "{split}/{split}.{language}")
"""In a FLORES-101 or -200 folder, in a FLORES+ one; DIR, or DIR/mt."""
FLORES_PAIRS = ("fra_Latn-eng_Latn", "deu_Latn-eng_Latn")
"""Those of the Fast BLT paper."""

RESERVED = 16
"""Rows at the beginning of a file without splits that shots are drawn from; they are never evaluated."""

SPARE_BYTES = 128

Sentences: TypeAlias = list[str]
Pairs: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class LanguagePair:
    """source, target: languages. examples: sentences that shots come from; sentences: those that are evaluated."""

    source: str
    target: str
    examples: Pairs
    sentences: Pairs


class Translation(Task):
    """Translation, 4 shots: BLEU and chrF.

    Source: FLORES+ (Goyal et al. 2022, NLLB Team 2022) from the hub or a folder, or the OLDI seed file; Fast BLT: 4
    shots.

    Prompt: 4 pairs of lines `English: ...`, `French: ...` with an empty line behind each, the same for all sentences
    (drawn with `seed`: of FLORES's dev split, of the seed file's first 16 rows, which are never evaluated); then the
    source's line and `French:`. Greedy; the line's end ends the answer. Languages are named in English, those this
    project has no name for by their codes. Pairs, as `part`: `fra_Latn-eng_Latn`. Without: of the seed file every
    language into English, then English into every language; of FLORES French and German into English, as in the Fast
    BLT paper. The result is the mean over pairs. `bleu_char`: BLEU over characters (sacrebleu's `char`), which needs no
    model and so is the same anywhere. `bleu_flores200` or `bleu_spm`: SentencePiece BLEU as in the papers,
    additionally, where sacrebleu has that model in its folder (and sentencepiece is installed). `chrf`: chrF2.
    Normalisation: white space at both ends is cut off and line breaks within a sentence become spaces; sacrebleu's
    defaults otherwise (case kept, exponential smoothing). Known differences from the published protocol: FLORES+
    instead of FLORES-101 on the hub, its devtest split; its exact prompt is not published.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "bleu_char": Metric(of=bleu, highest=100.0),
        "bleu_flores200": Metric(of=bleu, highest=100.0),
        "bleu_spm": Metric(of=bleu, highest=100.0),
        "chrf": Metric(of=chrf, highest=100.0),
    }
    damaged: ClassVar[tuple[str, ...]] = ("source",)
    level: ClassVar[str | None] = "pair"
    macro: ClassVar[bool] = True

    kind: Literal["translation"] = "translation"
    part: tuple[str, ...] = Field(
        default=(), description="Pairs SOURCE-TARGET of language codes.", examples=[("eng_Latn-vec_Latn",)]
    )
    shots: NonNegativeInt = Field(default=4, le=RESERVED, description="Translated pairs.", examples=[0, 2])

    @field_validator("part")
    @classmethod
    def _pairs(cls, part: tuple[str, ...]) -> tuple[str, ...]:
        for name in part:
            source, _, target = name.partition("-")
            if not source or not target or "-" in target or source == target:
                raise ValueError(f"translation:{name}: expected two languages, such as eng_Latn-vec_Latn")
        return part

    def prepare(self) -> None:
        need_sacrebleu()

    def items(self, place: Place) -> Iterator[Item]:
        pieces = sentence_pieces()
        tokenize = ("char", pieces) if pieces else ("char",)
        for pair in pairs(self.part, place):
            name = f"{pair.source}-{pair.target}"
            shots = drawn(pair.examples, self.shots, self.seed)
            if not pair.examples or len(shots) < self.shots:
                raise ValueError(
                    f"translation:{name}: {len(shots)} pairs for examples, fewer than shots = {self.shots}"
                )
            longer = sum(len(b.encode()) for _, b in pair.examples) / sum(len(a.encode()) for a, _ in pair.examples)
            for number, (source, gold) in enumerate(pair.sentences):
                fields = {
                    "source": source,
                    "gold": gold,
                    "shots": shots,
                    "tokenize": tokenize,
                    # Twice what the languages' other sentences let expect of this source; nothing of its reference.
                    "max_bytes": SPARE_BYTES + ceil(2 * longer * len(source.encode())),
                }
                yield Item(f"{name}/{number}", fields, {"pair": name, "direction": direction(pair)})

    def requests(self, item: Item) -> tuple[Request, ...]:
        first, second = map(name_of, item.groups["pair"].split("-"))
        solved = "".join(f"{first}: {source}\n{second}: {target}\n\n" for source, target in item["shots"])
        return (generation(f"{solved}{first}: {item['source']}\n{second}:", item["max_bytes"], ("\n",)),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        found, gold = one_line(written(answers).text), item["gold"]
        sums: dict[str, float | Numbers] = {
            f"bleu_{tokenize}": bleu_sums(found, gold, tokenize) for tokenize in item["tokenize"]
        }
        return Grade({**sums, "chrf": chrf_sums(found, gold)}, {"gold": gold, "read": found})


def direction(pair: LanguagePair) -> str:
    """`into_english`, `from_english` or `other`."""
    if pair.target.startswith("eng"):
        return "into_english"
    return "from_english" if pair.source.startswith("eng") else "other"


def one_line(text: str) -> str:
    """A sentence without white space at its ends; line breaks within become spaces."""
    return " ".join(text.strip().splitlines())


def pairs(part: Sequence[str], place: Place) -> Iterator[LanguagePair]:
    """The pairs asked for, or the defaults: from the seed file, else from FLORES.

    Raises ValueError where neither is there, or a language is missing.
    """
    path = next((found for name in SEED_FILES if (found := place.find(name)) is not None), None)
    if path is None:
        yield from _flores_pairs(part or FLORES_PAIRS, place)
        return
    rows = list(read_rows(path))
    if len(rows) <= RESERVED:
        raise ValueError(f"{path}: {len(rows)} rows; the first {RESERVED} are kept for examples, so give more")
    languages = list(rows[0])
    if not part:
        if ENGLISH not in languages:
            raise ValueError(f"{path}: no {ENGLISH}; name pairs, such as translation:{'-'.join(languages[:2])}")
        others = [language for language in languages if language != ENGLISH]
        part = [*(f"{other}-{ENGLISH}" for other in others), *(f"{ENGLISH}-{other}" for other in others)]
    for name in part:
        source, target = name.split("-")
        for language in (source, target):
            if language not in languages:
                raise ValueError(f"translation:{name}: {path} has no {language}{nearest(language, languages)}")
        both = []
        for number, row in enumerate(rows, 1):
            needed(row, (source, target), f"{path}, row {number}")
            both.append((one_line(row[source]), one_line(row[target])))
        yield LanguagePair(source, target, _whole(both[:RESERVED]), _whole(both[RESERVED:]))


def _flores_pairs(part: Sequence[str], place: Place) -> Iterator[LanguagePair]:
    for name in part:
        source, target = name.split("-")
        splits = []
        for split in ("dev", "devtest"):
            one, other = (_flores(language, split, place) for language in (source, target))
            if len(one) != len(other) or not one:
                raise ValueError(f"translation:{name}: {split} has {len(one)} and {len(other)} sentences")
            splits.append(_whole(list(zip(one, other, strict=True))))
        yield LanguagePair(source, target, *splits)


def _flores(language: str, split: str, place: Place) -> Sentences:
    for folder in ("", "mt/"):
        for pattern in FLORES_FILES:
            if (path := place.find(folder + pattern.format(split=split, language=language))) is not None:
                return [one_line(line) for _, line in read_text_lines(path)]
    hub = HubSet(FLORES, split, language, _text)
    # Neither is there; the name is for the message.
    return [one_line(row["text"]) for row in place.rows(f"{SEED_FILES[0]} or {split}/{language}.{split}", hub)]


def _text(row: Row) -> Row:
    needed(row, ("text",), FLORES)
    return {"text": row["text"]}


def _whole(found: Pairs) -> Pairs:
    """Without sentences that one of the languages lacks."""
    return [pair for pair in found if all(pair)]
