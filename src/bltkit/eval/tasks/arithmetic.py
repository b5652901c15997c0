"""Sums without spaces, such as `280-46-997=`: does the model go on with the result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from bltkit.eval.dataset_source import Place, needed
from bltkit.eval.requests import Answer, Request, Scored, likelihood
from bltkit.eval.tasks.task import Grade, Item, Metric, Task

FILE = "simple_arithmetic_nospaces.jsonl"


class Arithmetic(Task):
    """Simple arithmetic, 0 shots: the result of a sum, digit by digit.

    Source: `simple_arithmetic_nospaces.jsonl`, the simple arithmetic set of the MosaicML evaluation gauntlet, without
    spaces.

    Prompt: the context as it is, without examples. Greedy bytes must equal the continuation; what the model would write
    behind it (a further digit) does not count. Normalisation: none. Greedy writing gives the continuation exactly if
    each of its bytes is the most probable one behind the context and the bytes before it, and that is what a likelihood
    reports as `greedy`: so one pass over known bytes is asked for instead of a generation. Known difference: for a
    token model the two differ where it would write the same text in other tokens than the tokenizer's; then it counts
    as wrong.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {"exact_match": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("context",)

    kind: Literal["arithmetic"] = "arithmetic"

    def items(self, place: Place) -> Iterator[Item]:
        for number, row in enumerate(place.rows(FILE)):
            needed(row, ("context", "continuation"), f"{FILE}, item {number}")
            if not row["continuation"]:
                raise ValueError(f"{FILE}, item {number}: the continuation is empty")
            yield Item(str(number), {"context": row["context"], "continuation": row["continuation"]})

    def requests(self, item: Item) -> tuple[Request, ...]:
        return (likelihood(item["context"], item["continuation"]),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        (answer,) = answers
        assert isinstance(answer, Scored), answer
        return Grade({"exact_match": float(answer.greedy)}, {"gold": item["continuation"], "logprob": answer.logprob})
