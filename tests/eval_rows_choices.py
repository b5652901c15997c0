"""Small rows of the tasks that ask for likelihoods, and which of their continuations are the right ones."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from bltkit.eval.tasks.task import Item


def _lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _asked(query: str, *choices: str, gold: int) -> dict[str, Any]:
    return {"query": query, "choices": list(choices), "gold": gold}


_SCIENCE = _lines(
    _asked("Question: What melts in the sun?", "a stone", "snow", "iron", "glass", gold=1),
    _asked("Question: What has feathers?", "a goose", "a cow", "a carp", "a frog", gold=0),
    _asked("Question: Which is a metal?", "wood", "wool", "tin", gold=2),
)


def _exam(subject: str, number: int, answer: int) -> dict[str, Any]:
    choices = [str(number + place - answer) for place in range(4)]
    return {
        "question": f"How many are {number}?",
        "subject": subject,
        "choices": choices,
        "answer": answer,
    }


ROWS: dict[str, dict[str, str]] = {
    "arc_easy": {"arc_easy.jsonl": _SCIENCE},
    "arc_challenge": {"arc_challenge.jsonl": _SCIENCE},
    "piqa": {
        "piqa.jsonl": _lines(
            _asked("Question: Cool the soup.\n", "Wait a while.", "Set it on the stove.", gold=0),
            _asked("Question: Dry the shirt.\n", "Lay it in the bath.", "Hang it on the line.", gold=1),
        )
    },
    "openbookqa": {"openbook_qa.jsonl": _lines(_asked("Bees make", "paper", "honey", "milk", "bread", gold=1))},
    "hellaswag": {
        "hellaswag_val.jsonl": _lines(
            {
                "ctx": "Cooking: A man breaks an egg.",
                "endings": ["It flies.", "He whisks it.", "He sings it.", "The egg breaks a man."],
                "label": "1",
            },
            {
                "ctx": "Skiing: A girl stands on a hill.",
                "endings": ["She skis down.", "She swims down.", "The hill skis.", "A hill is."],
                "label": 0,
            },
        )
    },
    "winogrande": {
        "winogrande.jsonl": _lines(
            {
                "context_options": ["The cup broke the jug since the cup", "The cup broke the jug since the jug"],
                "continuation": "was soft.",
                "gold": 1,
            }
        )
    },
    "boolq": {
        "boolq.jsonl": _lines(
            _asked("Passage: Snow is white.\nQuestion: is snow black?", "no", "yes", gold=0),
            _asked("Passage: Snow is white.\nQuestion: is snow white?", "no", "yes", gold=1),
        )
    },
    "mmlu": {
        "mmlu_dev.jsonl": _lines(
            *(_exam(subject, number, number % 4) for subject in ("high_sums", "sums") for number in range(10, 16))
        ),
        "mmlu_validation.jsonl": _lines(_exam("sums", 21, 1), _exam("high_sums", 22, 3), _exam("sums", 23, 0)),
    },
    "lambada": {
        "lambada_openai.jsonl": _lines(
            {"context": "The dog saw a cat. It barked at the", "continuation": "cat"},
            {"context": "Anna called Bert, and nobody came but", "continuation": "Bert"},
        )
    },
    "blimp": {
        "blimp/agreement.jsonl": _lines(
            {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "field": "morphology"},
            {"sentence_good": "A cat sleeps.", "sentence_bad": "A cat sleep.", "field": "morphology"},
        ),
        "blimp/islands.jsonl": _lines(
            {"sentence_good": "Whom did Anna see?", "sentence_bad": "Whom did see Anna?", "field": "syntax"}
        ),
    },
    "bpb": {
        "text/poems.jsonl": _lines({"text": "Роза пахнет розой."}, {"text": "The fog comes."}, {"text": ""}),
        "text/table.csv": "a,b\n1,2\n",
    },
}
"""By kind: file name -> content, in the task's local format."""


def _gold(item: Item) -> list[bool]:
    return [place == item["gold"] for place in range(len(item["choices"]))]


TRUTHS: dict[str, Callable[[Item], list[Any]]] = {
    "arc_easy": _gold,
    "arc_challenge": _gold,
    "piqa": _gold,
    "openbookqa": _gold,
    "hellaswag": lambda item: [place == int(item["label"]) for place in range(4)],
    "winogrande": lambda item: [place == item["gold"] for place in range(2)],
    "boolq": _gold,
    "mmlu": lambda item: [place == item["answer"] for place in range(4)],
    "lambada": lambda item: [True],
    "blimp": lambda item: [True, False],
    "bpb": lambda item: [True],
}
"""By kind: is each continuation (or text) the right one."""
