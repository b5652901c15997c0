"""MMLU: examination questions of 57 subjects (Hendrycks et al. 2021)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.tasks.choice import ChoiceTask, numbered
from bltkit.eval.tasks.task import Item, Metric

LETTERS = "ABCD"


class Mmlu(ChoiceTask):
    """MMLU, 5 shots: a line that names the subject, solved items of the subject in file order, then the item; the
    choices are " A" to " D".

    Normalisation: none, each choice has two bytes. Source: `mmlu_validation.jsonl` (question, subject, choices, answer)
    with shots from `mmlu_dev.jsonl`, or cais/mmlu, test, with shots from dev. `mmlu:astronomy` is one subject. The main
    result is the mean over items (micro); the mean over subjects stands beside it. Known difference: rows shorter than
    the prompt lose its beginning, so that of five shots fewer may be seen: the results
    say how many requests were cut.
    """

    kind: Literal["mmlu"] = "mmlu"
    shots: NonNegativeInt = Field(default=5, examples=[0, 2])
    metrics: ClassVar[Mapping[str, Metric]] = {"acc": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("question",)
    level: ClassVar[str | None] = "subject"

    def items(self, place: Place) -> Iterator[Item]:
        names = ("question", "subject", "choices", "answer")
        solved: dict[str, list[Row]] = {}
        if self.shots:
            for row in place.rows("mmlu_dev.jsonl", HubSet("cais/mmlu", "dev", "all")):
                solved.setdefault(row["subject"], []).append(row)
        rows = place.rows("mmlu_validation.jsonl", HubSet("cais/mmlu", "test", "all"))
        items = list(numbered(rows, "mmlu_validation.jsonl", names))
        chosen = self.chosen_parts(sorted({item["subject"] for item in items}))
        preambles: dict[str, str] = {}
        for item in self.sound(items, "mmlu_validation.jsonl"):
            subject = item["subject"]
            if subject not in chosen:
                continue
            shots = solved.get(subject, [])[: self.shots]
            if len(shots) < self.shots:
                raise ValueError(
                    f"mmlu_dev.jsonl: {len(shots)} items of subject {subject!r}, but shots = {self.shots} are wanted; "
                    f"say mmlu:shots={len(shots)}, or give a file that has more"
                )
            if subject not in preambles:
                preambles[subject] = _preamble(subject, shots)
            yield Item(item.id, {**item.fields, "preamble": preambles[subject]}, {"subject": subject})

    def context(self, item: Item) -> str:
        return item["preamble"] + _question(item.fields)

    def choices(self, item: Item) -> Sequence[str]:
        return list(LETTERS[: len(item["choices"])])

    def gold(self, item: Item) -> int:
        return int(item["answer"])


def _preamble(subject: str, shots: Sequence[Row]) -> str:
    name = subject.replace("_", " ")
    solved = "".join(f"{_question(row)} {LETTERS[int(row['answer'])]}\n\n" for row in shots)
    return f"The following are multiple choice questions (with answers) about {name}.\n\n{solved}"


def _question(fields: Mapping[str, Any]) -> str:
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, fields["choices"], strict=False))
    return f"{fields['question'].strip()}\n{options}Answer:"
