"""PIQA: which of two ways reaches a goal (Bisk et al. 2020)."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.tasks.choice import ChoiceTask
from bltkit.eval.tasks.task import Item


class Piqa(ChoiceTask):
    """PIQA, 0 shots: "Question: GOAL", a line "Answer:", then each solution.

    Normalisation: `acc_norm` divides by the solution's bytes. Source: `piqa.jsonl` (query with its line end, choices,
    gold), or ybisk/piqa, validation (the test split has no labels). Known difference: the BLT paper does not print its
    prompt; this is the common harness's.
    """

    kind: Literal["piqa"] = "piqa"
    damaged: ClassVar[tuple[str, ...]] = ("query",)

    def items(self, place: Place) -> Iterator[Item]:
        # Its main branch is a script, which `datasets` no longer runs; the hub keeps a converted copy beside it.
        hub = HubSet("ybisk/piqa", "validation", None, _from_hub, "refs/convert/parquet")
        return self.asked(place, "piqa.jsonl", hub)

    def context(self, item: Item) -> str:
        # Noise may have taken the query's line end.
        return f"{item['query'].rstrip()}\nAnswer:"


def _from_hub(row: Row) -> dict[str, Any]:
    return {"query": f"Question: {row['goal']}\n", "choices": [row["sol1"], row["sol2"]], "gold": int(row["label"])}
