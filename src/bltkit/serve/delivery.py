"""A request on its way: submitted, and handed out as pieces of text as its bytes become certain."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from bltkit.generate import Finish
from bltkit.serve.byte_text import ChoiceText, Entry, Piece, entries_of
from bltkit.serve.errors import ApiError
from bltkit.serve.handle import Engine, EventStream
from bltkit.serve.messages import Delta, Failed, Prompted
from bltkit.serve.prometheus import Meter
from bltkit.serve.work import CompletionWork
from bltkit.vocab import EOS

Ending = Finish | Literal["timeout", "draining"]
"""Why a choice ended: as the engine says, or since its time was over, with what there was."""

FINISH_REASONS: dict[Ending, Literal["stop", "length"]] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "timeout": "length",
    "draining": "length",
}
"""In OpenAI's words."""


@dataclass(frozen=True)
class ChoicePart:
    """What a choice has gained; its last part has `ending`."""

    index: int
    piece: Piece
    ending: Ending | None = None


@dataclass
class ChoiceState:
    """The state of a choice."""

    index: int
    seed: int
    text: ChoiceText
    echo: Piece | None
    """To be handed out first."""
    num_bytes: int = 0
    patches: int = 0
    ending: Ending | None = None
    last: float | None = field(default=None, repr=False)
    """When the latest bytes came."""


class Delivery:
    """All choices of a request. Whoever does not read all of `parts` calls `cancel`."""

    def __init__(self, engine: Engine, work: CompletionWork, seconds: float | None, meter: Meter) -> None:
        """seconds: to the deadline; None: there is none."""
        self.work, self._meter = work, meter
        self.began = perf_counter()
        self.choices: list[ChoiceState] = []
        self._streams: list[tuple[EventStream, int, Sequence[ChoiceState]]] = []
        self._arrived = asyncio.Event()
        most = engine.settings.limits.sequences
        for at, (prompt, requests) in enumerate(zip(work.prompts, work.requests, strict=True)):
            choices: list[ChoiceState] = []
            for request in requests:
                index = len(self.choices) + len(choices)
                echo = Piece() if work.echo else None
                choices.append(ChoiceState(index, request.sampling.seed, ChoiceText(work.logprobs), echo))
            self.choices += choices
            # More choices than run side by side are several requests of the engine.
            for first in range(0, len(requests), most):
                part = requests[first : first + most]
                stream = engine.submit(prompt.ids, part, work.prompt_logprobs, seconds)
                stream.arrived = self._arrived
                self._streams.append((stream, at, choices[first : first + most]))

    async def parts(self) -> AsyncGenerator[list[ChoicePart]]:
        """Parts as they come, of several choices at once. Asking for the next ones says that the last were taken.

        Raises ApiError where the request fails and nothing was generated.
        """
        open_streams = self._streams
        while open_streams:
            self._arrived.clear()
            parts: list[ChoicePart] = []
            taken: list[tuple[EventStream, int, int]] = []
            for stream, at, choices in open_streams:
                for event in stream.take():
                    if isinstance(event, Delta):
                        taken.append((stream, event.choice, len(event.chunk.data)))
                        parts += self._grown(choices[event.choice], at, event)
                    elif isinstance(event, Prompted):
                        parts += self._echoed(choices, at, event)
                    else:
                        parts += self._failed(choices, event)
            if parts:
                yield parts
            for stream, choice, size in taken:
                stream.read(choice, size)
            open_streams = [item for item in open_streams if not item[0].over or item[0].has_events]
            if open_streams and not any(item[0].has_events for item in open_streams):
                await self._arrived.wait()
        self._meter.request_seconds.observe(perf_counter() - self.began)

    def cancel(self) -> None:
        """Nobody waits for the rest."""
        for stream, _, _ in self._streams:
            stream.cancel()

    @property
    def usage(self) -> dict[str, int | str]:
        """Bytes of the prompts and of all choices so far, in OpenAI's fields, and the patches of the latter."""
        completion = sum(choice.num_bytes for choice in self.choices)
        return {
            "prompt_tokens": self.work.prompt_bytes,
            "completion_tokens": completion,
            "total_tokens": self.work.prompt_bytes + completion,
            "unit": "byte",
            "completion_patches": sum(choice.patches for choice in self.choices),
        }

    def _echoed(self, choices: Sequence[ChoiceState], at: int, event: Prompted) -> list[ChoicePart]:
        """The scored prompt in front of each choice."""
        prompt = self.work.prompts[at]
        tops = event.top_logprobs or ((),) * len(event.logprobs)
        entries = [Entry(*each) for each in zip(prompt.ids[1:], event.logprobs, tops, strict=True)]
        if len(prompt.sent) == len(prompt.ids):
            entries.insert(0, Entry(prompt.ids[0], None, ()))
        elif entries:  # OpenAI's contract: nothing is told of the first
            entries[0] = Entry(entries[0].chosen, None, ())
        parts = []
        for choice in choices:
            choice.echo = None
            parts.append(ChoicePart(choice.index, choice.text.feed(prompt.data, entries)))
        return [part for part in parts if part.piece]

    def _grown(self, choice: ChoiceState, at: int, event: Delta) -> list[ChoicePart]:
        chunk = event.chunk
        piece = Piece()
        if choice.echo is not None:
            choice.echo = None
            piece = choice.text.feed(self.work.prompts[at].data)
        entries = entries_of(chunk.data, chunk.logprobs, chunk.top_logprobs) if self.work.logprobs else []
        piece += choice.text.feed(chunk.data, entries)
        choice.num_bytes += len(chunk.data)
        choice.patches += sum(chunk.opens)
        self._time(choice, len(chunk.data))
        if chunk.finish is not None:
            # Behind a scored prompt EOS has an entry, as bytes have. Else the last one could be the prompt's, and
            # lm-evaluation-harness cuts it off.
            scored_end = self.work.prompt_logprobs is not None and chunk.finish == "eos"
            end = [Entry(EOS, chunk.eos_logprob, chunk.eos_top_logprobs)] if scored_end else []
            piece += choice.text.end(end)
            self._end(choice, chunk.finish)
        return [ChoicePart(choice.index, piece, choice.ending)] if piece or choice.ending else []

    def _failed(self, choices: Sequence[ChoiceState], event: Failed) -> list[ChoicePart]:
        """A request whose time is over ends with what it has."""
        if event.reason not in ("timeout", "draining") or not any(choice.num_bytes for choice in choices):
            raise failure(event)
        parts = []
        for choice in choices:
            if choice.ending is None:
                self._end(choice, event.reason)
                parts.append(ChoicePart(choice.index, choice.text.end(), choice.ending))
        return parts

    def _end(self, choice: ChoiceState, ending: Ending) -> None:
        choice.ending = ending
        self._meter.finished(FINISH_REASONS[ending])

    def _time(self, choice: ChoiceState, size: int) -> None:
        if not size:
            return
        now = perf_counter()
        if choice.last is None:
            self._meter.first_byte_seconds.observe(now - self.began)
        else:
            self._meter.byte_seconds.observe((now - choice.last) / size)
        choice.last = now


def failure(event: Failed) -> ApiError:
    """The answer to a request that failed; `text` quotes nothing."""
    match event.reason:
        case "too_long":
            return ApiError(400, event.text, code="context_length_exceeded")
        case "no_memory":
            return ApiError(400, f"{event.text}; ask for less", code="no_memory")
        case "unsupported":
            return ApiError(400, f"strategy: {event.text}", param="strategy", code="unsupported")
        case "timeout":
            return ApiError(408, event.text, code="timeout", kind="timeout_error", retry_after=1)
        case "draining":
            return ApiError(503, event.text, code="draining", kind="server_error", retry_after=1)
        case "internal":
            return ApiError(500, event.text, code="internal_error", kind="server_error")
