"""BLiMP: which of two sentences is English (Warstadt et al. 2020)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, hub_configs, read_rows
from bltkit.eval.requests import Answer, Request, Scored, likelihood
from bltkit.eval.tasks.choice import first_best, numbered
from bltkit.eval.tasks.task import Grade, Item, Metric, Task

_HUB = "nyu-mll/blimp"


class Blimp(Task):
    """BLiMP, 0 shots: both sentences behind BOS, summed over their bytes; right where the good one is the likelier
    (a tie is wrong, as in the paper).

    Normalisation: none. Source: `blimp/*.jsonl` (sentence_good, sentence_bad, UID, field), or nyu-mll/blimp, train. 67
    paradigms (`blimp:adjunct_island` is one) in four fields; the main result is the mean over paradigms. Known
    differences: none from the paper's whole-sentence method; no EOS is counted behind a sentence.
    """

    kind: Literal["blimp"] = "blimp"
    metrics: ClassVar[Mapping[str, Metric]] = {"acc": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("sentence_good", "sentence_bad")
    level: ClassVar[str | None] = "paradigm"
    macro: ClassVar[bool] = True

    def items(self, place: Place) -> Iterator[Item]:
        names = ("sentence_good", "sentence_bad")
        files = {path.name.partition(".")[0]: path for path in place.glob("blimp/*.jsonl")}
        known = files if files or (place.directories and not place.find(_HUB)) else hub_configs(_HUB, place)
        if not known:
            raise ValueError(f"blimp/*.jsonl: no such files in {place}; put them there, or leave --data out")
        for paradigm in self.chosen_parts(sorted(known)):
            hub = HubSet(_HUB, "train", paradigm)
            rows = read_rows(files[paradigm]) if files else place.rows(f"blimp/{paradigm}.jsonl", hub)
            for item in numbered(rows, f"blimp/{paradigm}.jsonl", names):
                field = str(item.fields.get("field", "unknown")).replace(
                    "/", "_"
                )  # the set writes one of them in two ways
                groups = {"paradigm": paradigm, "field": field}
                yield Item(f"{paradigm}/{item.id}", item.fields, groups)

    def requests(self, item: Item) -> tuple[Request, ...]:
        return likelihood("", item["sentence_good"]), likelihood("", item["sentence_bad"])

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        scores = [answer.logprob for answer in answers if isinstance(answer, Scored)]
        # Equal scores: nothing tells the good one from the bad one, so the item is not won by standing first.
        right = first_best(scores) == 0 and scores[0] > scores[1]
        return Grade({"acc": float(right)}, {"gold": 0, "chosen": int(not right), "logprobs": scores})

    def chance(self, item: Item) -> Mapping[str, float | None]:
        return {"acc": 1 / 2}
