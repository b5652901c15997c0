"""WinoGrande: what does the pronoun's blank stand for (Sakaguchi et al. 2020)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.requests import Answer, Request, Scored, likelihood
from bltkit.eval.tasks.choice import first_best, numbered
from bltkit.eval.tasks.task import Grade, Item, Metric, Task


class Winogrande(Task):
    """WinoGrande, 0 shots: the same continuation's likelihood behind the sentence with either option in the blank.

    Source: `winogrande.jsonl` (context_options, continuation, gold), or allenai/winogrande, winogrande_xl, validation.
    Normalisation: none; scored partially (Trinh and Le 2018), only what follows the blank counts. Known
    differences: none from the common harness; the BLT papers do not report it.
    """

    kind: Literal["winogrande"] = "winogrande"
    metrics: ClassVar[Mapping[str, Metric]] = {"acc": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("context_options",)

    def items(self, place: Place) -> Iterator[Item]:
        hub = HubSet("allenai/winogrande", "validation", "winogrande_xl", _from_hub)
        file, names = "winogrande.jsonl", ("context_options", "continuation", "gold")
        for item in numbered(place.rows(file, hub), file, names):
            if item["gold"] not in range(len(item["context_options"])):
                raise ValueError(f"{file}, item {item.id}: gold = {item['gold']!r} is no place of context_options")
            yield item

    def requests(self, item: Item) -> tuple[Request, ...]:
        return tuple(likelihood(context, f" {item['continuation']}") for context in item["context_options"])

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        scores = [answer.logprob for answer in answers if isinstance(answer, Scored)]
        best = first_best(scores)
        shown = {"gold": item["gold"], "chosen": best, "logprobs": scores}
        return Grade({"acc": float(best == item["gold"])}, shown)

    def chance(self, item: Item) -> Mapping[str, float | None]:
        return {"acc": 1 / len(item["context_options"])}


def _from_hub(row: Row) -> dict[str, Any]:
    before, _, after = row["sentence"].partition("_")
    return {
        "context_options": [before + row["option1"], before + row["option2"]],
        "continuation": after.strip(),
        "gold": int(row["answer"]) - 1,
    }
