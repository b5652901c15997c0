"""OpenBookQA: elementary science facts, applied (Mihaylov et al. 2018)."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.tasks.choice import ChoiceTask
from bltkit.eval.tasks.task import Item, Metric


class OpenBookQa(ChoiceTask):
    """OpenBookQA, 0 shots: the question's stem as it is, then each choice.

    Normalisation: `acc_norm` divides by the choice's bytes. Source: `openbook_qa.jsonl` (query, choices, gold), or
    allenai/openbookqa, main, test. The book's facts are not shown. Known differences: none from the common harness; the
    BLT papers do not report it.
    """

    kind: Literal["openbookqa"] = "openbookqa"
    metrics: ClassVar[Mapping[str, Metric]] = {"acc_norm": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("query",)

    def items(self, place: Place) -> Iterator[Item]:
        return self.asked(place, "openbook_qa.jsonl", HubSet("allenai/openbookqa", "test", "main", _from_hub))

    def context(self, item: Item) -> str:
        return item["query"].rstrip()


def _from_hub(row: Row) -> dict[str, Any]:
    return {
        "query": row["question_stem"],
        "choices": list(row["choices"]["text"]),
        "gold": list(row["choices"]["label"]).index(row["answerKey"].strip()),
    }
