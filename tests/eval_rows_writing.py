"""Small rows of the tasks whose answer the model writes, and what a model that knows everything would answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Continuation, Likelihood
from bltkit.eval.tasks.task import Item, Task


def _lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(*rows: Sequence[str]) -> str:
    header = [f"input{number}" for number in range(1, len(rows[0]))] + ["label"]
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


_CUTE = {
    "spell": [("apple", "a p p l e"), ("tin", "t i n")],
    "spell_inverse": [("r o o f", "roof"), ("e g g", "egg")],
    "contains_char": [("o", "moon", "Yes"), ("x", "moon", "No")],
    "contains_word": [("moon", "The moon is up.", "Yes"), ("sun", "The moon is up.", "No")],
    "orth": [("table", "desk", "cable", "cable"), ("spoon", "spool", "fork", "spool")],
    "sem": [("table", "desk", "cable", "desk"), ("spoon", "spool", "fork", "fork")],
    "ins_char": [("x", "o", "moon", "moxoxn"), ("a", "n", "nut", "naut")],
    "ins_word": [("very", "is", "The moon is up.", "The moon is very up."), ("b", "a", "a a", "a b a b")],
    "del_char": [("o", "moon", "mn"), ("n", "nut", "ut")],
    "del_word": [("up", "The moon is up.", "The moon is."), ("The", "The moon is up.", "moon is up.")],
    "sub_char": [("o", "a", "moon", "maan"), ("n", "c", "nut", "cut")],
    "sub_word": [("up", "old", "The moon is up.", "The moon is old."), ("moon", "cat", "A moon.", "A cat.")],
    "swap_char": [("m", "n", "moon", "noom"), ("u", "t", "nut", "ntu")],
    "swap_word": [("The", "up", "The moon is up.", "up moon is The."), ("a", "b", "a b", "b a")],
    "spell_rand": [("qzk", "q z k")],
    "spell_inverse_rand": [("q z k", "qzk")],
    "contains_char_rand": [("q", "qzk", "Yes")],
    "ins_char_rand": [("x", "q", "qzk", "qxzk")],
    "del_char_rand": [("q", "qzk", "zk")],
    "sub_char_rand": [("q", "x", "qzk", "xzk")],
    "swap_char_rand": [("q", "z", "qzk", "zqk")],
}

ROWS: dict[str, dict[str, str]] = {
    "gsm8k": {
        "gsm8k_test.jsonl": _lines(
            {"context": "Lea has 3 pens and buys 4. How many has she?", "chain_of_thought": "3 + 4 = 7", "answer": "7"},
            {"context": "A house costs $65,000 and $960 more. How much?", "answer": "65,960"},
            {"context": "It is 2 degrees and falls by 5. What is it then?", "answer": "-3"},
        )
    },
    "arithmetic": {
        "simple_arithmetic_nospaces.jsonl": _lines(
            {"context": "7-9=", "continuation": "-2"}, {"context": "20+22=", "continuation": "42"}
        )
    },
    "cute": {f"cute/{name}.tsv": _table(*rows) for name, rows in _CUTE.items()},
    "g2p": {
        "g2p/aaa_train.tsv": "".join(f"{a}a{b}o\t{a} aː {b} o\n" for a in "bdg" for b in "lmn"),
        "g2p/aaa_dev.tsv": "zalo\tz aː l o\nzano\tz aː n o\n",
        "g2p/bbb_train.tsv": "".join(f"{a}е{b}\t{a} ʲ e {b}\n" for a in "бдг" for b in "лмн"),
        "g2p/bbb_dev.tsv": "зел\tз ʲ e л\n",
    },
    "translation": {
        "oldi_seed.jsonl": _lines(
            *(
                {
                    "deu_Latn": f"Im Haus wohnen {number} Katzen.",
                    "eng_Latn": f"There are {number} cats living in the house.",
                    "vec_Latn": f"Ghe xe {number} gati ne ła caxa.",
                    "fra_Latn": f"Il y a {number} chats dans la maison.",
                }
                for number in range(2, 21)
            )
        )
    },
    "utf8": {},
}
"""By kind: file name -> content, in the task's local format."""

TRUTHS: dict[str, Callable[[Item], list[Any]]] = {
    "gsm8k": lambda item: [f" Count.\nThe answer is {item['answer']}."],
    "arithmetic": lambda item: [True],
    "cute": lambda item: [item["label"]],
    "g2p": lambda item: [f" {item['phonemes']}"],
    "translation": lambda item: [f" {item['gold']}"],
    "utf8": lambda item: [
        item["prompt"].encode()[len(item["prompt"].encode()) - item["cut"] :] + "и так далее".encode()
    ],
}
"""By kind: the right answers to an item's requests, in order: what a generation writes (bytes where it is no text of
its own), and whether a continuation is the right one."""


def place_of(kind: str, directory: Path) -> Place:
    """A place with the kind's small rows."""
    for name, text in ROWS[kind].items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Place.of([directory])


def items_of(task: Task, directory: Path) -> list[Item]:
    """The items of the kind's small rows."""
    return list(task.items(place_of(task.kind, directory)))


def contexts(task: Task, directory: Path) -> list[str]:
    """What the small rows are asked with."""
    found = []
    for item in items_of(task, directory):
        for request in task.requests(item):
            assert isinstance(request, Continuation | Likelihood)
            found.append(request.context.decode())
    return found
