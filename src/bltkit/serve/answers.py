"""Answers in OpenAI's shapes: whole, and as the events of a stream. Models here document them; nothing is validated."""

import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from bltkit.serve.byte_text import Piece, chat_logprobs, completion_logprobs
from bltkit.serve.delivery import FINISH_REASONS, ChoicePart, ChoiceState, Ending
from bltkit.serve.work import CompletionWork


class Shape:
    """The shape of an answer; one of its subclasses, for one request."""

    prefix: str
    whole_object: str
    event_object: str

    def __init__(self, work: CompletionWork, model: str) -> None:
        self.work = work
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(
        self, choices: Sequence[ChoiceState], pieces: Sequence[Piece], usage: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The answer at once. pieces: all of each choice."""
        several = [
            self._choice(choice, piece, self._full(piece), choice.ending)
            for choice, piece in zip(choices, pieces, strict=True)
        ]
        return {**self._head, "object": self.whole_object, "choices": several, "usage": dict(usage)}

    def event(self, choice: ChoiceState, part: ChoicePart, first: bool) -> dict[str, Any]:
        """An event of a stream. first: of its choice."""
        usage: dict[str, Any] = {"usage": None} if self.work.include_usage else {}
        several = [self._choice(choice, part.piece, self._grown(part, first), part.ending)]
        return {**self._head, "object": self.event_object, "choices": several, **usage}

    def usage_event(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The last event of a stream, where it is asked for."""
        return {**self._head, "object": self.event_object, "choices": [], "usage": dict(usage)}

    def _choice(
        self, choice: ChoiceState, piece: Piece, text: Mapping[str, Any], ending: Ending | None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            **text,
            "logprobs": self._logprobs(piece) if self.work.logprobs else None,
            "finish_reason": None if ending is None else FINISH_REASONS[ending],
            **({} if ending is None else {"ending": ending, "seed": choice.seed}),
            **({"bytes": base64.b64encode(piece.data).decode("ascii")} if self.work.bytes else {}),
        }

    def _full(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _grown(self, part: ChoicePart, first: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError


class CompletionShape(Shape):
    """Of `/v1/completions`."""

    prefix = "cmpl"
    whole_object = event_object = "text_completion"

    def _full(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def _grown(self, part: ChoicePart, first: bool) -> dict[str, Any]:
        return {"text": part.piece.text}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        return completion_logprobs(piece.entries)


class ChatShape(Shape):
    """Of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    event_object = "chat.completion.chunk"

    def _full(self, piece: Piece) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": piece.text, "refusal": None}}

    def _grown(self, part: ChoicePart, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        return {"delta": {**role, "content": part.piece.text} if first or part.piece.text else {}}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        return chat_logprobs(piece.entries)


class ErrorObject(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every answer that is no success."""

    error: ErrorObject


class Usage(BaseModel):
    """Counts of bytes, in OpenAI's fields."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    unit: str
    completion_patches: int


class CompletionLogprobs(BaseModel):
    """Parallel lists, an item for each byte."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    bytes: list[list[int]]


class CompletionChoice(BaseModel):
    """A choice of a completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    ending: str | None = None
    """eos, stop, length, timeout or draining."""
    seed: int | None = None
    bytes: str | None = None
    """base64, where asked for."""


class CompletionResponse(BaseModel):
    """An answer of `/v1/completions`; a stream's events have the same shape."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class AssistantMessage(BaseModel):
    """What the model said."""

    role: str
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """A choice of a chat; a stream's events have `delta` in place of `message`."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    ending: str | None = None
    seed: int | None = None
    bytes: str | None = None


class ChatResponse(BaseModel):
    """An answer of `/v1/chat/completions`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ScoreItem(BaseModel):
    """The score of a text. `logprob` sums the natural logarithms of its bytes' probabilities."""

    index: int
    object: str
    num_bytes: int
    logprob: float
    bits_per_byte: float | None
    logprobs: list[float] | None = None


class ScoreResponse(BaseModel):
    """An answer of `/v1/score`."""

    object: str
    model: str
    data: list[ScoreItem]
    usage: dict[str, Any]


class TokenizeResponse(BaseModel):
    """An answer of `/tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeResponse(BaseModel):
    """An answer of `/detokenize`. `bytes`: base64 of what the text stands for."""

    prompt: str
    bytes: str
