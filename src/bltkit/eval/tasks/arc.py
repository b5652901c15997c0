"""ARC: grade-school science questions, easy and challenging (Clark et al. 2018)."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.tasks.choice import ChoiceTask
from bltkit.eval.tasks.task import Item


class _Arc(ChoiceTask):
    file: ClassVar[str]
    config: ClassVar[str]
    damaged: ClassVar[tuple[str, ...]] = ("query",)

    def items(self, place: Place) -> Iterator[Item]:
        hub = HubSet("allenai/ai2_arc", "test", self.config, _from_hub)
        return self.asked(place, self.file, hub)

    def context(self, item: Item) -> str:
        return f"{item['query']}\nAnswer:"


class ArcEasy(_Arc):
    """ARC-Easy, 0 shots: "Question: ...", a line "Answer:", then each choice.

    Normalisation: `acc_norm` divides by the choice's bytes. Source: `arc_easy.jsonl` (query, choices, gold), or
    allenai/ai2_arc, ARC-Easy, test. Known difference: the BLT paper does not print its prompt; this is the common
    harness's. Items with other than four choices stay in.
    """

    kind: Literal["arc_easy"] = "arc_easy"
    file: ClassVar[str] = "arc_easy.jsonl"
    config: ClassVar[str] = "ARC-Easy"


class ArcChallenge(_Arc):
    """ARC-Challenge, 0 shots, in every respect like `arc_easy`.

    Normalisation: as there. Source: `arc_challenge.jsonl` (query, choices, gold), or allenai/ai2_arc, ARC-Challenge,
    test. Known difference: as there.
    """

    kind: Literal["arc_challenge"] = "arc_challenge"
    file: ClassVar[str] = "arc_challenge.jsonl"
    config: ClassVar[str] = "ARC-Challenge"


def _from_hub(row: Row) -> dict[str, Any]:
    return {
        "query": f"Question: {row['question']}",
        "choices": list(row["choices"]["text"]),
        "gold": list(row["choices"]["label"]).index(row["answerKey"]),
    }
