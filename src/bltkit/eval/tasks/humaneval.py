"""HumanEval: complete a Python function from its signature and docstring."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, needed
from bltkit.eval.tasks.programs import Programs
from bltkit.eval.tasks.task import Item

STOPS = ("\ndef", "\nclass", "\nif", "\nprint", "\n#")


class HumanEval(Programs):
    """HumanEval: Python functions from their docstrings, 0 shots, pass@k.

    Source: `humaneval.jsonl`, or openai/openai_humaneval, test (Chen et al., 2021, "Evaluating Large Language Models
    Trained on Code"). Normalisation: none.

    The prompt as it is, its last line break included; the completion ends in front of a top-level `def`, `class`, `if`,
    `print` or comment. The prompt and the completion are executed, then the tests, called with the entry point.
    Noise damages what the model reads; what is executed has the clean prompt, so that the function can be right.
    Known differences: those of `Programs`; the length is limited in bytes, where the paper does not say how.
    """

    kind: Literal["humaneval"] = "humaneval"
    damaged: ClassVar[tuple[str, ...]] = ("prompt",)

    def items(self, place: Place) -> Iterator[Item]:
        for number, row in enumerate(place.rows("humaneval.jsonl", HubSet("openai/openai_humaneval", "test")), 1):
            needed(row, ("prompt", "test", "entry_point"), f"humaneval.jsonl, row {number}")
            yield Item(str(row.get("task_id", number)), {**row, "clean": row["prompt"]})

    def prompt(self, item: Item) -> str:
        return str(item["prompt"])

    def stops(self) -> tuple[str, ...]:
        return STOPS

    def program(self, item: Item, text: str) -> tuple[str, str]:
        return item["clean"] + text, f"{item['test']}\ncheck({item['entry_point']})\n"
