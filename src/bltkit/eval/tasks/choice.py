"""Tasks whose answer is the likeliest of a few choices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from bltkit.eval.dataset_source import HubSet, Place, Row, needed
from bltkit.eval.requests import Answer, Request, Scored, likelihood
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.vocab import to_bytes


class ChoiceTask(Task):
    """A question and its choices; the score of a choice is its log-probability behind the question.

    `acc` takes the highest sum, `acc_norm` the highest sum per byte of the choice (the space in front counts); ties go
    to the first.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {"acc_norm": Metric(), "acc": Metric()}

    def context(self, item: Item) -> str:
        """What stands in front of a choice; it ends without a space."""
        raise NotImplementedError

    def choices(self, item: Item) -> Sequence[str]:
        """Without the space in front."""
        return item["choices"]

    def gold(self, item: Item) -> int:
        """The right one's place."""
        return item["gold"]

    def asked(self, place: Place, file: str, hub: HubSet) -> Iterator[Item]:
        """Items of a file whose rows hold `query`, `choices` and `gold`."""
        return self.sound(numbered(place.rows(file, hub), file, ("query", "choices", "gold")), file)

    def sound(self, items: Iterable[Item], file: str) -> Iterator[Item]:
        """The items. Raises ValueError for one whose choices are no texts, or whose right one is not among them."""
        for number, item in enumerate(items, 1):
            choices = self.choices(item)
            if not _are_texts(choices):
                raise ValueError(f"{file}, item {number}: choices = {choices!r:.80}, not a list of texts")
            try:
                gold = self.gold(item)
            except (TypeError, ValueError):
                gold = -1
            if gold not in range(len(choices)):
                raise ValueError(f"{file}, item {number}: the right choice is none of 0 .. {len(choices) - 1}")
            yield item

    def requests(self, item: Item) -> tuple[Request, ...]:
        context = to_bytes(self.context(item))  # once for all choices: with five shots it is long
        return tuple(likelihood(context, f" {choice}") for choice in self.choices(item))

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        scores = [answer.logprob for answer in answers if isinstance(answer, Scored)]
        sizes = [len(f" {choice}".encode()) for choice in self.choices(item)]
        gold = self.gold(item)
        best = first_best(scores)
        best_norm = first_best([score / size for score, size in zip(scores, sizes, strict=True)])
        values = {"acc": float(best == gold), "acc_norm": float(best_norm == gold)}
        return Grade(
            {name: values[name] for name in self.metrics},
            {"gold": gold, "chosen": best, "chosen_norm": best_norm, "logprobs": scores},
        )

    def chance(self, item: Item) -> Mapping[str, float | None]:
        return dict.fromkeys(self.metrics, 1 / len(self.choices(item)))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def first_best(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equals."""
    return max(range(len(scores)), key=lambda at: (scores[at], -at))


def numbered(rows: Iterable[Row], file: str, names: Sequence[str]) -> Iterator[Item]:
    """Rows as items, called by their place in the file, from 0. Raises ValueError where a row lacks a field."""
    for number, row in enumerate(rows):
        needed(row, names, f"{file}, item {number + 1}")
        yield Item(str(number), row)
