"""HellaSwag: how does a description go on (Zellers et al. 2019)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.tasks.choice import ChoiceTask, numbered
from bltkit.eval.tasks.task import Item, Metric


class HellaSwag(ChoiceTask):
    """HellaSwag, 0 shots: "ACTIVITY: CONTEXT", then each of four endings.

    Normalisation: `acc_norm` divides by the ending's bytes. Source: `hellaswag_val.jsonl` (ctx, endings, label), or
    Rowan/hellaswag, validation, whose contexts are joined and cleaned here: the second half begins with a capital,
    notes in square brackets go, a title's mark ends a sentence. Noise damages context and endings, as in the BLT paper
    (its five averages: AntSpeak, Drop, RandomCase, Repeat, UpperCase). Known difference: the paper's noise is not
    published as code; `bltkit.eval.noise` says what ours does.
    """

    kind: Literal["hellaswag"] = "hellaswag"
    metrics: ClassVar[Mapping[str, Metric]] = {"acc_norm": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("ctx", "endings")

    def items(self, place: Place) -> Iterator[Item]:
        hub = HubSet("Rowan/hellaswag", "validation", None, _from_hub)
        rows = place.rows("hellaswag_val.jsonl", hub)
        return self.sound(numbered(rows, "hellaswag_val.jsonl", ("ctx", "endings", "label")), "hellaswag_val.jsonl")

    def context(self, item: Item) -> str:
        return item["ctx"].rstrip()

    def choices(self, item: Item) -> Sequence[str]:
        return item["endings"]

    def gold(self, item: Item) -> int:
        return int(item["label"])


def _from_hub(row: Row) -> dict[str, Any]:
    second = row["ctx_b"][:1].upper() + row["ctx_b"][1:].lower()
    return {
        "ctx": _cleaned(f"{row['activity_label']}: {row['ctx_a']} {second}"),
        "endings": [_cleaned(ending) for ending in row["endings"]],
        "label": row["label"],
    }


def _cleaned(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()
