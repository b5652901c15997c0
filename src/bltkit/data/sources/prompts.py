"""Prompts and their completions from JSON lines, for fine-tuning: a document is both, and only the completion (and
the document's end) is learned.

Notable: nothing is put between the two and nothing is stripped; what the model is later asked with has to end as the
prompts here do.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from bltkit.data.sources.jsonl import JsonLines
from bltkit.data.sources.records import find
from bltkit.data.sources.source import Document
from bltkit.vocab import to_bytes


class PromptSource(JsonLines):
    """Lines of JSON objects; `prompt` and `completion` are the keys of two strings, dots leading through nested
    objects. A prompt may be empty, a completion without any bytes is broken.
    """

    kind: Literal["prompts"] = "prompts"
    prompt: str = "prompt"
    """Key of the prompt, with dots through nested objects."""
    completion: str = "completion"
    """Key of the completion, which alone is learned."""

    def document(self, record: dict[str, Any], where: str) -> Document:
        prompt = _string(record, self.prompt, "prompt", where)
        completion = _string(record, self.completion, "completion", where)
        if not completion:
            raise ValueError(f"{where}: field {self.completion!r} is empty, so nothing to learn; remove the line")
        return Document(where, prompt + completion, learned=np.repeat([False, True], [len(prompt), len(completion)]))


def _string(record: dict[str, Any], field: str, setting: str, where: str) -> bytes:
    value = find(record, field, where, setting)
    if not isinstance(value, str):
        # No null for an empty string here: a column that was not filled in would pass for one.
        raise ValueError(f"{where}: field {field!r} is a {type(value).__name__}, a string is wanted")
    return to_bytes(value)
