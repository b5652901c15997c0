"""The chat template: how a conversation becomes bytes, and which of them a model learns. Between a source's records
and its documents, and later between a chat API and a prompt.

A message is written as

    turn role text CONTENT end            by default   0x01 "user" 0x02 CONTENT 0x03

Notable: a byte model has no ids to spare for marks, so marks are bytes, and by default those that ASCII set aside
for this: SOH (a heading begins), STX (the text begins), ETX (the text ends). In UTF-8 no other character holds these
bytes, keyboards do not type them and prose does not use them, so a user's text cannot be taken for a mark. Content
that does hold one is refused, never changed: whoever could write marks could put words into another role's mouth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from bltkit.config import Config, nearest, parse
from bltkit.vocab import to_bytes

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Who may speak. The assistant is the model."""

OTHER_NAMES: Mapping[str, Role] = {"developer": "system"}
"""Names of the same roles elsewhere: OpenAI's newer models take from `developer` what `system` said before."""

Learn = Literal["assistant", "last"]
"""Whose words are targets: every turn of the assistant, or the last one only."""

RECORD_KEY = "chat_template"
"""Where a checkpoint's record holds the template that its model was trained with."""

_TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a content's parts that are text: of chat completions, and of OpenAI's responses."""
_CALLS = ("tool_calls", "function_call")


class Rendered(NamedTuple):
    """A conversation as bytes, and `learned` bool [len(data)]: what the assistant says and the mark that ends it."""

    data: bytes
    learned: npt.NDArray[np.bool_]


class ChatTemplate(Config):
    """The three marks, as text so that TOML and JSON hold them. Other models' styles can be written, too: ChatML is
    turn = "<|im_start|>", text = "\\n", end = "<|im_end|>\\n".
    """

    turn: str = Field(default="\x01", min_length=1)
    """In front of the role's name."""
    text: str = Field(default="\x02", min_length=1)
    """Between the role's name and the content."""
    end: str = Field(default="\x03", min_length=1)
    """Behind the content."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.turn in self.end or self.end in self.turn:
            raise ValueError(
                f"turn = {self.turn!r} and end = {self.end!r}: one stands in the other; take two that a reader can "
                "tell apart"
            )
        for role in ROLES:
            if (role + self.text).find(self.text) != len(role):
                raise ValueError(f"text = {self.text!r} cannot be told from the name {role!r} in front of it")
        return self

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self | None:
        """The template of a checkpoint's record; None where its model was not trained on conversations."""
        return parse(cls, record[RECORD_KEY], f"the record's {RECORD_KEY}") if RECORD_KEY in record else None

    @property
    def stop(self) -> bytes:
        """What the assistant's turn ends with: the stop string of generation."""
        return to_bytes(self.end)

    def render(
        self,
        messages: Any,
        add_generation_prompt: bool = False,
        learn: Learn = "assistant",
    ) -> Rendered:
        """A conversation as bytes.

        messages: a list of `{"role": ..., "content": ...}`, from a file or a request: all of it is checked here. Role
            `developer` is written as `system`. Content is a string, or a list of text parts `{"type": "text", "text":
            ...}`, which are joined as they are. A turn of `weight` 0 is not learned, as in OpenAI's files. Other keys
            are not looked at.
        add_generation_prompt: open a turn of the assistant behind the messages, for the model to go on with.

        Raises ValueError for an unknown role, content that is no text or holds a mark, parts of other types than text,
        and calls of tools that are not written out as content; it begins with `message N` (from 1).
        """
        turns = [(_role(message, n), self._content(message, n)) for n, message in enumerate(_checked(messages), 1)]
        own = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
        learned_turns = {
            index for index in (own if learn == "assistant" else own[-1:]) if _weight(messages[index], index + 1)
        }
        parts: list[tuple[bytes, bool]] = []
        for index, (role, content) in enumerate(turns):
            parts += [(self._opening(role), False), (content + self.stop, index in learned_turns)]
        if add_generation_prompt:
            parts.append((self._opening("assistant"), False))
        learned = np.repeat([is_learned for _, is_learned in parts], [len(data) for data, _ in parts])
        return Rendered(b"".join(data for data, _ in parts), learned.astype(np.bool_))

    def _opening(self, role: Role) -> bytes:
        return to_bytes(f"{self.turn}{role}{self.text}")

    def _content(self, message: Mapping[str, Any], number: int) -> bytes:
        calls = [key for key in _CALLS if message.get(key)]
        if calls:
            raise ValueError(f"message {number}: {calls[0]} would be lost; write the call out as content")
        if "content" not in message:
            raise ValueError(f"message {number}: content is missing, a string is wanted")
        data = to_bytes(_text(message["content"], number))
        # With the mark behind it: content may end in what begins a mark.
        closed = data + self.stop
        for name, mark in (("turn", to_bytes(self.turn)), ("end", self.stop)):
            at = closed.find(mark)
            if at >= 0 and at != len(data):
                raise ValueError(
                    f"message {number}: content holds the template's `{name}` mark {mark!r} at byte {at}; remove it, "
                    "or choose other marks"
                )
        return data


def _role(message: Mapping[str, Any], number: int) -> Role:
    role = message.get("role")
    roles: dict[str, Role] = {**{name: name for name in ROLES}, **OTHER_NAMES}
    if not isinstance(role, str) or role not in roles:
        hint = nearest(role, list(roles)) if isinstance(role, str) else f"; known: {', '.join(roles)}"
        raise ValueError(f"message {number}: role {role!r}{hint}")
    return roles[role]


def _weight(message: Mapping[str, Any], number: int) -> bool:
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"message {number}: weight = {weight!r:.80}; a turn is learned (1) or not (0)")
    return weight != 0


def _text(content: Any, number: int) -> str:
    """Content as one string."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"message {number}: content is {_kind(content)}, a string is wanted")
    if not content:
        raise ValueError(f"message {number}: content is an empty list, a string or text parts are wanted")
    texts = []
    for place, part in enumerate(content, 1):
        where = f"message {number}: part {place} of content"
        if not isinstance(part, Mapping):
            raise ValueError(f"{where} is {_kind(part)}, an object with `type` and `text` is wanted")
        if part.get("type") not in _TEXT_PARTS:
            raise ValueError(f"{where} is of type {part.get('type')!r:.80}; a model of bytes reads type 'text' alone")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: text is {_kind(part.get('text'))}, a string is wanted")
        texts.append(part["text"])
    return "".join(texts)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _checked(messages: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ValueError(f"messages are a {type(messages).__name__}, a list is wanted")
    if not messages:
        raise ValueError("no messages; a conversation has at least one")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is a {type(message).__name__}, an object is wanted")
    checked: Sequence[Mapping[str, Any]] = messages
    return checked
