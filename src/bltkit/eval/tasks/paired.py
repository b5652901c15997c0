"""What real noise costs in bits per byte: the same texts, clean and as they were found, such as scanned or posted."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from bltkit.config import nearest
from bltkit.eval.dataset_source import Place
from bltkit.eval.noise.noise_pairs import pair_of
from bltkit.eval.requests import Answer, Coded, Compression, Request
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.vocab import to_bytes

FILE = "paired.jsonl"


def gap(sums: Sequence[float]) -> float:
    """(bits, bytes) of noisy texts, then of clean ones -> bits per byte of the noisy less those of the clean."""
    noisy, noisy_bytes, clean, clean_bytes = sums
    return noisy / noisy_bytes - clean / clean_bytes if noisy_bytes and clean_bytes else math.nan


class PairedTexts(Task):
    """What real noise costs in bits per byte, and how far clean text stays the likelier.

    Source: one's own `paired.jsonl` (clean, noisy), or `--paired FILE`; the task is this project's own.

    Both texts of a pair are scored as texts of their own, behind BOS, without EOS, in windows where they are long.
    `bits_per_byte_gap`: bits per byte of all noisy texts less that of all clean ones, each by its own bytes, in which
    noise that lengthens a text hides; `likelihood_gap` does not let it: bits that a noisy text costs beyond its clean
    one, as a mean over pairs. `clean_likelier`: share of pairs whose clean text has fewer bits per byte (equal ones
    count half). Normalisation: texts as they stand in the file. Known differences: nothing of it is published. Groups:
    the rows' `source`, where they have one.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "bits_per_byte_gap": Metric(better="lower", of=gap, highest=None),
        "bits_per_byte_clean": Metric(better="lower", highest=None),
        "bits_per_byte_noisy": Metric(better="lower", highest=None),
        "likelihood_gap": Metric(better="lower", highest=None),
        "clean_likelier": Metric(),
    }
    level: ClassVar[str | None] = "source"

    kind: Literal["paired"] = "paired"
    part: tuple[str, ...] = Field(default=(), description="Sources, as the rows name them; all where empty.")

    def items(self, place: Place) -> Iterator[Item]:
        path = place.find(FILE)
        if path is None:
            raise ValueError(f"{FILE}: not found in {place}; it has no data set on the hub, so give --data DIR")
        sources = set()
        for number, row in enumerate(place.rows(FILE)):
            try:
                pair = pair_of(row)
            except ValueError as error:
                raise ValueError(f"{path}, row {number + 1}: {error}") from None
            source = str(row.get("source", "all"))
            sources.add(source)
            if not self.part or source in self.part:
                yield Item(str(number), {"clean": pair.clean, "noisy": pair.noisy}, {"source": source})
        for name in self.part:
            if name not in sources:
                raise ValueError(f"paired:{name}: no such source in {path}{nearest(name, sorted(sources))}")

    def requests(self, item: Item) -> tuple[Request, ...]:
        return (Compression(to_bytes(item["clean"])), Compression(to_bytes(item["noisy"])))

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        (clean, clean_bytes), (noisy, noisy_bytes) = map(_bits, answers)
        by_byte = clean / clean_bytes, noisy / noisy_bytes
        return Grade(
            {
                "bits_per_byte_gap": (noisy, noisy_bytes, clean, clean_bytes),
                "bits_per_byte_clean": (clean, clean_bytes),
                "bits_per_byte_noisy": (noisy, noisy_bytes),
                "likelihood_gap": noisy - clean,
                "clean_likelier": 0.5 if by_byte[0] == by_byte[1] else float(by_byte[0] < by_byte[1]),
            },
            {"bits_clean": clean, "bits_noisy": noisy},
        )

    def chance(self, item: Item) -> Mapping[str, float | None]:
        return {**super().chance(item), "clean_likelier": 1 / 2}


def _bits(answer: Answer) -> tuple[float, float]:
    assert isinstance(answer, Coded), answer
    return answer.nats / math.log(2), float(answer.num_bytes)
