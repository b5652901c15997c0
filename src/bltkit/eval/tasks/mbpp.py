"""MBPP: write a Python function from one sentence and three tests."""

from collections.abc import Iterator
from itertools import chain
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt

from bltkit.eval.dataset_source import HubSet, Place, Row, needed, read_rows
from bltkit.eval.tasks.programs import Programs
from bltkit.eval.tasks.task import Item

HUB = "google-research-datasets/mbpp"
PROMPTS = (2, 3, 4, 1, 5, 6, 7, 8, 9, 10)
"""Numbers of the published prompt split, those that the paper shows first."""
BEGIN, DONE = "[BEGIN]", "[DONE]"


class Mbpp(Programs):
    """MBPP: basic Python problems, each a sentence and its tests, 3 shots, pass@1.

    Source: `mbpp_*.jsonl`, or google-research-datasets/mbpp, test (Austin et al., 2021, "Program Synthesis with Large
    Language Models"). Normalisation: none.

    An item is the paper's sentence ("You are an expert Python programmer, and here is your task: ..."), the tests, and
    the code between [BEGIN] and [DONE]. Shots are items 2, 3 and 4 of the paper's prompt split (1 to 10), which is
    never evaluated; of a file without that split, its first items. All other items of a file are evaluated; on the
    hub, the test split. Noise damages the sentence alone: the tests hold the function's name.
    Known differences: those of `Programs`; line breaks of the code in shots are made \\n, and white space at line ends
    and around it is left out; the tests stand each on a line; an item's set-up code runs in front of its tests.
    """

    kind: Literal["mbpp"] = "mbpp"
    shots: NonNegativeInt = Field(default=3, le=len(PROMPTS), description="Solved items in front.", examples=[0, 1])
    damaged: ClassVar[tuple[str, ...]] = ("text",)

    def items(self, place: Place) -> Iterator[Item]:
        shots, rows = self._split(place)
        front = "".join(f"{_question(row)}{_solved(row['code'])}\n" for row in shots)
        for row in rows:
            yield Item(str(row["task_id"]), {**row, "front": front})

    def prompt(self, item: Item) -> str:
        return f"{item['front']}{_question(dict(item.fields))}"

    def stops(self) -> tuple[str, ...]:
        return (DONE,)

    def program(self, item: Item, text: str) -> tuple[str, str]:
        return text, "\n".join([item.fields.get("test_setup_code") or "", *item["test_list"]])

    def _split(self, place: Place) -> tuple[list[Row], list[Row]]:
        """The rows of the shots, in their order, and those that are evaluated."""
        if paths := place.glob("mbpp_*.jsonl"):
            rows = list(chain.from_iterable(map(read_rows, paths)))
        else:
            rows = [
                *place.rows("mbpp_prompt.jsonl", HubSet(HUB, "prompt", "full")),
                *place.rows("mbpp_test.jsonl", HubSet(HUB, "test", "full")),
            ]
        for number, row in enumerate(rows, 1):
            needed(row, ("task_id", "text", "test_list", "code"), f"mbpp, row {number}")
        by_number = {row["task_id"]: row for row in reversed(rows)}
        shots = [by_number[number] for number in PROMPTS if number in by_number][: self.shots]
        kept = {*PROMPTS}
        if len(shots) < self.shots:
            # Without the published split: the first of the file, and only these are kept out.
            shots = rows[: self.shots]
            kept = {row["task_id"] for row in shots}
        rest = [row for row in rows if row["task_id"] not in kept]
        if len(shots) < self.shots or not rest:
            raise ValueError(f"mbpp: {len(rows)} rows in {place} leave none to evaluate beside {self.shots} shots")
        return shots, rest


def _question(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} "
        f"Your code should pass these tests:\n\n{tests}\n{BEGIN}\n"
    )


def _solved(code: str) -> str:
    lines = "\n".join(line.rstrip() for line in code.splitlines())
    return f"{lines.strip()}\n{DONE}"
