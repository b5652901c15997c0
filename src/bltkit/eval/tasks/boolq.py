"""BoolQ: questions of yes or no about a passage (Clark et al. 2019)."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.tasks.choice import ChoiceTask
from bltkit.eval.tasks.task import Item, Metric


class BoolQ(ChoiceTask):
    """BoolQ, 0 shots: "Passage: ...", "Question: ...?", a line "Answer:", then " no" or " yes".

    Normalisation: none, `acc` is of the sums. Source: `boolq.jsonl` (query, choices, gold), or google/boolq,
    validation. Known difference: the common harness's passage begins with the bare title of its page; ours has the
    passage as the data set gives it. Passages longer than a model's row lose their beginning, which is counted.
    """

    kind: Literal["boolq"] = "boolq"
    metrics: ClassVar[Mapping[str, Metric]] = {"acc": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("query",)

    def items(self, place: Place) -> Iterator[Item]:
        return self.asked(place, "boolq.jsonl", HubSet("google/boolq", "validation", None, _from_hub))

    def context(self, item: Item) -> str:
        return f"{item['query']}\nAnswer:"


def _from_hub(row: Row) -> dict[str, Any]:
    query = f"Passage: {row['passage']}\nQuestion: {row['question'].rstrip('?')}?"
    return {"query": query, "choices": ["no", "yes"], "gold": int(row["answer"])}
