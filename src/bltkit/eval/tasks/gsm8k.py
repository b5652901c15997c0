"""GSM8K: school mathematics in words, solved step by step; the last number written is the answer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt

from bltkit.eval.dataset_source import HubSet, Place, Row, needed
from bltkit.eval.requests import Answer, Request, generation
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.eval.tasks.writing import written

SOLVED = (
    (
        "A bakery bakes 12 trays of rolls each morning, with 15 rolls on every tray. By noon 134 rolls are sold. How "
        "many rolls are left?",
        "12 trays with 15 rolls each are 12 * 15 = 180 rolls.\n"
        "After the sale of 134 rolls, 180 - 134 = 46 rolls are left.\n"
        "The answer is 46.",
    ),
    (
        "Nadia reads 24 pages on Monday, twice as many on Tuesday, and 10 fewer on Wednesday than on Tuesday. How many "
        "pages does she read in the three days?",
        "On Tuesday she reads 24 * 2 = 48 pages.\n"
        "On Wednesday she reads 48 - 10 = 38 pages.\n"
        "In the three days she reads 24 + 48 + 38 = 110 pages.\n"
        "The answer is 110.",
    ),
    (
        "A bicycle costs $360. In a sale its price falls by 25%. Omar also buys a lock for $18. How many dollars does "
        "he pay in all?",
        "The price falls by 360 * 25 / 100 = 90 dollars.\n"
        "The bicycle then costs 360 - 90 = 270 dollars.\n"
        "With the lock Omar pays 270 + 18 = 288 dollars.\n"
        "The answer is 288.",
    ),
    (
        "A train covers 210 kilometers in 3 hours. At the same speed, how many kilometers does it cover in 5 hours?",
        "In one hour it covers 210 / 3 = 70 kilometers.\n"
        "In 5 hours it covers 70 * 5 = 350 kilometers.\n"
        "The answer is 350.",
    ),
    (
        "Three friends share the cost of a tent, $147, and of food, $63, equally. One of them has already paid $25. "
        "How many dollars does this friend still owe?",
        "Tent and food together cost 147 + 63 = 210 dollars.\n"
        "Each friend's share is 210 / 3 = 70 dollars.\n"
        "This friend still owes 70 - 25 = 45 dollars.\n"
        "The answer is 45.",
    ),
)
"""Written for this project: question, solution."""

MAX_BYTES = 1024
"""The longest solution of the published test split's first 250 has 938 bytes, the median 231."""

STOP = ("\n\n", "\nQuestion:")


def question_row(row: Row) -> Row:
    """A row of the hub's set -> ours: the answer stands behind `####`."""
    needed(row, ("question", "answer"), "openai/gsm8k")
    return {"context": row["question"], "answer": row["answer"].rpartition("####")[2].strip()}


HUB = HubSet("openai/gsm8k", "test", "main", question_row)


class Gsm8k(Task):
    """GSM8K: grade-school mathematics in words, 5 shots.

    Source: `gsm8k_test.jsonl`, or openai/gsm8k, main, test; Cobbe et al. 2021, "Training Verifiers to Solve Math Word
    Problems", test split.

    Prompt: five fixed solved items written for this project, each `Question: ...`, `Answer: ...` with a step a line and
    `The answer is N.` at the end; then the question. Greedy; a blank line or the next question ends the answer.
    Normalisation: `last_number` of the answer and of the gold, compared as numbers, so that 18, 18.00 and $18. are the
    same. No number: wrong. Known differences from what is often published: other solved items (papers take 8, or 5 of
    the train split), the last number instead of the one behind a marker, and no calculator.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {"exact_match": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("context",)

    kind: Literal["gsm8k"] = "gsm8k"
    shots: NonNegativeInt = Field(
        default=5, le=len(SOLVED), description="The first of the five solved items.", examples=[0, 2]
    )

    def items(self, place: Place) -> Iterator[Item]:
        for number, row in enumerate(place.rows("gsm8k_test.jsonl", HUB)):
            needed(row, ("context", "answer"), f"gsm8k_test.jsonl, item {number}")
            if last_number(str(row["answer"])) is None:
                raise ValueError(f"gsm8k_test.jsonl, item {number}: answer {row['answer']!r} holds no number")
            yield Item(str(number), {"context": row["context"], "answer": str(row["answer"])})

    def requests(self, item: Item) -> tuple[Request, ...]:
        solved = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SOLVED[: self.shots])
        return (generation(f"{solved}Question: {item['context']}\nAnswer:", MAX_BYTES, STOP),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        found, gold = last_number(written(answers).text), last_number(item["answer"])
        right = found is not None and found == gold
        return Grade({"exact_match": float(right)}, {"gold": str(gold), "read": None if found is None else str(found)})


_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−])?[$€£]?(?P<inner>(?<=[$€£])[-−])?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<![0-9.])(?=\.[0-9]))(?P<decimals>\.[0-9]+)?"
)


def last_number(text: str) -> Decimal | None:
    """The last number in a text; None where there is none.

    Commas between groups of three digits, a currency sign in front and a dot at the end of the sentence are no part
    of it. A minus counts as a sign unless a letter, a digit or a bracket stands right in front of it (`7-5` ends in 5).
    Digits are ASCII; of a fraction `1/2` the last number is 2.
    """
    every = list(_NUMBER.finditer(text))
    if not every:
        return None
    found = every[-1]
    sign = "-" if found["sign"] or found["inner"] else ""
    return Decimal(f"{sign}{found['digits'].replace(',', '')}{found['decimals'] or ''}")
