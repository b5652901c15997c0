"""CUTE: does a model know what its text is spelled like; 14 small tasks on letters and on words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt

from bltkit.eval.dataset_source import HubSet, Place, Row, needed
from bltkit.eval.requests import Answer, Request, generation
from bltkit.eval.tasks.cute_prompts import COMPOSITION, PROMPTS, SIMILARITY
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.eval.tasks.writing import written

TASKS = tuple(PROMPTS)
"""The 14."""

RANDOM = ("spell", "spell_inverse", "contains_char", "ins_char", "del_char", "sub_char", "swap_char")
"""These exist with random letters instead of words as well, as NAME_rand."""

PARTS = (*TASKS, *(f"{name}_rand" for name in RANDOM))

OF_WORDS = ("contains_word", "sem", "ins_word", "del_word", "sub_word", "swap_word")
"""The other eight are about characters."""

OF_TWO = ("contains_char", "contains_word", "orth", "sem")
"""The answer is one of two that the prompt names."""

SHOTS = 4

SLACK = 16
"""Bytes an answer may be longer than its label before it is cut: for the record's reader, it is wrong already."""


class Cute(Task):
    """CUTE: does a model know the characters and words that a text is made of, 4 shots.

    Source: `cute/*.tsv`, or leukas/cute; Edman et al. 2024, "CUTE: Measuring LLMs' Understanding of Their Tokens".

    Prompt: a sentence of instruction, four numbered worked examples, and the question as number five, in the same form:
    `5. Spell out the word "with". Answer: "`. Instructions, forms and examples are this project's own
    (`cute_prompts.py`). Greedy; the next double quote ends the answer.
    Normalisation: the text up to the closing quote equals the label, case apart (`str.casefold`); nothing is stripped.
    The result is the mean over the 14 tasks, each weighing the same. Groups: `task`; `kind`, character (spell,
    spell_inverse, contains_char, orth, *_char) and word (contains_word, sem, *_word); `skill`, the paper's three:
    composition, similarity, manipulation. `part` may name the `_rand` variants, with random letters instead of words
    and the same prompt; they are no part of the 14.
    Known difference from the published protocol: the wording, which that paper fixes and this project does not copy.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {"exact_match": Metric()}
    damaged: ClassVar[tuple[str, ...]] = ("inputs",)
    level: ClassVar[str | None] = "task"
    macro: ClassVar[bool] = True

    kind: Literal["cute"] = "cute"
    part: tuple[str, ...] = Field(
        default=(), description="Of the 14 tasks and their _rand variants; the 14 where empty.", examples=[("spell",)]
    )
    shots: NonNegativeInt = Field(default=SHOTS, le=SHOTS, description="Worked examples.", examples=[0, 2])

    def items(self, place: Place) -> Iterator[Item]:
        for name in self.chosen_parts(PARTS if self.part else TASKS):
            base = name.removesuffix("_rand")
            columns = [f"input{number + 1}" for number in range(len(PROMPTS[base].examples[0]) - 1)]
            file = f"cute/{name}.tsv"
            groups = {"task": name, "kind": kind_of(base), "skill": skill_of(base)}
            for number, row in enumerate(place.rows(file, hub_set(name))):
                needed(row, (*columns, "label"), f"{file}, item {number}")
                if any(row[column] is None for column in (*columns, "label")):
                    raise ValueError(f"{file}, item {number}: fewer columns than the header names")
                fields = {"inputs": [row[column] for column in columns], "label": row["label"]}
                yield Item(f"{name}/{number}", fields, groups)

    def requests(self, item: Item) -> tuple[Request, ...]:
        prompt = PROMPTS[item.groups["task"].removesuffix("_rand")]
        lines = [f"{prompt.instruction}\n"]
        for number, (*inputs, label) in enumerate(prompt.examples[: self.shots], 1):
            lines.append(f'{number}. {prompt.form.format(*inputs)} Answer: "{label}"')
        lines.append(f'{self.shots + 1}. {prompt.form.format(*item["inputs"])} Answer: "')
        # What is not closed by then is longer than the label, so the bound gives nothing away.
        return (generation("\n".join(lines), len(item["label"].encode()) + SLACK, ('"',)),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        found, label = up_to_quote(written(answers).text), item["label"]
        right = found.casefold() == label.casefold()
        return Grade({"exact_match": float(right)}, {"gold": label, "read": found})

    def chance(self, item: Item) -> Mapping[str, float | None]:
        """1/2 where the prompt names the two answers. The others are open: 0, so that their mean has a level."""
        return {"exact_match": 1 / 2 if item.groups["task"].removesuffix("_rand") in OF_TWO else 0.0}


def kind_of(name: str) -> str:
    """`character` or `word`: what a task is about."""
    return "word" if name in OF_WORDS else "character"


def skill_of(name: str) -> str:
    """The paper's three groups."""
    return "composition" if name in COMPOSITION else "similarity" if name in SIMILARITY else "manipulation"


def up_to_quote(text: str) -> str:
    """What stands in front of the first double quote; all where there is none."""
    return text.partition('"')[0]


def hub_set(name: str) -> HubSet:
    """The task's part of the hub's set."""
    count = len(PROMPTS[name.removesuffix("_rand")].examples[0]) - 1
    return HubSet("leukas/cute", name, None, lambda row: hub_row(row, count))


def hub_row(row: Row, count: int) -> Row:
    """A row of the hub's set -> ours. It may have our columns, or a worded question: the inputs are its quoted texts,
    in the order of our columns, the last ones where examples stand in front.

    Raises ValueError for a row of another shape.
    """
    if "label" in row:
        return row
    question, answer = row.get("question", row.get("prompt")), row.get("answer")
    if question is None or answer is None:
        raise ValueError(f"leukas/cute: columns {', '.join(row)}, not input1 ... label or question, answer")
    inputs = re.findall(r'"([^"]*)"', question)[-count:]
    if len(inputs) < count:
        raise ValueError(f"leukas/cute: {question[-80:]!r} quotes fewer than {count} inputs")
    return {**{f"input{number}": text for number, text in enumerate(inputs, 1)}, "label": answer}
