"""Conversations from JSON lines, for fine-tuning: each is a document, and only what the assistant says is learned.

Notable: the chat template is part of the source, and goes into the checkpoint's record from here, so that whoever
serves the model writes conversations just as it was trained on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from bltkit.data.sources.jsonl import JsonLines
from bltkit.data.sources.records import find
from bltkit.data.sources.source import Document, SourceConfig
from bltkit.data.template import ChatTemplate, Learn


class ChatSource(JsonLines):
    """Lines of JSON objects whose `field` is a list of `{"role": ..., "content": ...}`, dots leading through nested
    objects. Content is text or a list of text parts; role `developer` is `system`. `learn` says which turns of the
    assistant are targets. A conversation without one is broken.
    """

    kind: Literal["chat"] = "chat"
    field: str = "messages"
    """Key of the list of messages, with dots through nested objects."""
    learn: Learn = "assistant"
    """Which turns of the assistant are learned."""
    template: ChatTemplate = ChatTemplate()
    """How messages become bytes."""

    def document(self, record: dict[str, Any], where: str) -> Document:
        messages = find(record, self.field, where)
        try:
            data, learned = self.template.render(messages, learn=self.learn)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not learned.any():
            raise ValueError(f"{where}: no turn of the assistant, so nothing to learn; remove the line")
        return Document(where, data, learned=learned)


def chat_template(sources: Iterable[SourceConfig]) -> ChatTemplate | None:
    """The template of a run's sources, for its checkpoints' record; None where none holds conversations.

    Raises ValueError for two that differ: a model that was trained on both could be served with neither.
    """
    found: dict[ChatTemplate, str] = {}
    for source in sources:
        if isinstance(source, ChatSource):
            found.setdefault(source.template, source.label)
    if len(found) > 1:
        first, second, *_ = found.values()
        raise ValueError(f"data.sources: {first} and {second} have different templates; write one and the same")
    return next(iter(found), None)
