"""Small rows of the tasks whose answer is a program, and the right answers, from the rows' own solutions."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from bltkit.eval.tasks.task import Item


def _lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _sum(number: int, name: str, sentence: str, code: str, *tests: str) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": sentence,
        "code": f"def {name}:\r\n    {code}",
        "test_setup_code": "",
        "test_list": list(tests),
        "challenge_test_list": [],
    }


ROWS: dict[str, dict[str, str]] = {
    "humaneval": {
        "humaneval.jsonl": _lines(
            {
                "task_id": "Small/0",
                "prompt": 'def double(number: int) -> int:\n    """ Twice it.\n    >>> double(2)\n    4\n    """\n',
                "canonical_solution": "    return 2 * number\n",
                "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
                "entry_point": "double",
            },
            {
                "task_id": "Small/1",
                "prompt": 'from typing import List\n\n\ndef odd(of: List[int]) -> List[int]:\n    """Odd ones."""\n',
                "canonical_solution": "    found = [one for one in of if one % 2]\n\n    return found\n",
                "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == [1, 3]\n",
                "entry_point": "odd",
            },
        )
    },
    "mbpp": {
        "mbpp_small.jsonl": _lines(
            _sum(1, "one()", "Write a function that gives 1.", "return 1", "assert one() == 1"),
            _sum(2, "add(a, b)", "Write a function to add.", "return a + b ", "assert add(1, 2) == 3"),
            _sum(3, "less(a, b)", "Write a function to subtract.", "return a - b", "assert less(1, 2) == -1"),
            _sum(4, "times(a, b)", "Write a function to multiply.", "return a * b", "assert times(3, 2) == 6"),
            _sum(
                511,
                "size(of)",
                "Write a function to count what a list holds.",
                "return len(of)",
                "assert size([]) == 0",
                "assert size([5, 6]) == 2",
            ),
            _sum(512, "last(of)", "Write a function to find the last.", "return of[-1]", "assert last([5, 6]) == 6"),
        )
    },
}
"""By kind: file name -> content, in the task's local format."""

TRUTHS: dict[str, Callable[[Item], list[Any]]] = {
    "humaneval": lambda item: [item["canonical_solution"]],
    "mbpp": lambda item: [item["code"]],
}
"""By kind: the right answers to an item's requests, of one sample."""
