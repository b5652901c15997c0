"""What a request asks of the engine: prompts as ids, and a `generate.Request` for each choice of each.

Everything that can be refused without the model is refused here.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bltkit.config import nearest
from bltkit.data.template import ChatTemplate
from bltkit.generate import STRATEGIES, Request, parse_options
from bltkit.generate.grammar import GrammarError
from bltkit.generate.strategies import ALIASES
from bltkit.serve.body_fields import strategy_names
from bltkit.serve.errors import ApiError, invalid
from bltkit.serve.messages import ModelInfo
from bltkit.serve.protocol import DEFAULT_COMPLETION_BYTES, ChatRequest, CompletionRequest, GenerationBody
from bltkit.serve.tokens import EOS_NAME
from bltkit.vocab import BOS, OFFSET, decode, to_bytes

_OPTIONS = ("top_k", "min_p", "repetition_penalty", "repetition_window", "draft", "alpha", "gamma", "steps")
"""Fields that are options of `generate` under the same name."""
_DRAWN = 2**31
"""Seeds that are drawn are below it, so that every client's numbers hold them."""


@dataclass(frozen=True)
class PromptIds:
    """A prompt. sent: its ids as the client counts them. ids: those with BOS in front."""

    sent: tuple[int, ...]
    ids: tuple[int, ...]

    @classmethod
    def of(cls, prompt: str | Sequence[int] | bytes) -> "PromptIds":
        """Of a text, bytes or ids."""
        sent = tuple(byte + OFFSET for byte in to_bytes(prompt)) if isinstance(prompt, str | bytes) else tuple(prompt)
        return cls(sent, sent if sent[:1] == (BOS,) else (BOS, *sent))

    @property
    def size(self) -> int:
        """Ids after BOS: what counts in the context."""
        return len(self.ids) - 1

    @property
    def data(self) -> bytes:
        """Its bytes."""
        return decode(self.ids)


@dataclass(frozen=True)
class CompletionWork:
    """What is asked for. Choice i of prompt p is the answer's choice p * n + i."""

    prompts: tuple[PromptIds, ...]
    requests: tuple[tuple[Request, ...], ...]
    """Of each prompt."""
    echo: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    bytes: bool = False
    stream: bool = False
    include_usage: bool = False

    @property
    def choices(self) -> int:
        """All of them."""
        return sum(map(len, self.requests))

    @property
    def prompt_bytes(self) -> int:
        """Of all prompts."""
        return sum(prompt.size for prompt in self.prompts)

    @property
    def prompt_logprobs(self) -> int | None:
        """See `Submit`."""
        return self.top_logprobs if self.echo and self.logprobs else None


def completion_work(body: CompletionRequest, info: ModelInfo) -> CompletionWork:
    """A completion. Raises ApiError for what does not fit the model."""
    check_choices(len(body.prompt) * body.choices, info)
    limit = DEFAULT_COMPLETION_BYTES if body.limit is None else body.limit
    prompts = sized_prompts(body.prompt, limit, info, "prompt")
    top = body.logprobs or 0
    stops = tuple(text for text in body.stop if text != EOS_NAME)
    return _work(body, prompts, [limit] * len(prompts), stops, body.logprobs is not None, top, bool(body.echo))


def chat_work(body: ChatRequest, info: ModelInfo, template: ChatTemplate | None) -> CompletionWork:
    """A chat. Raises ApiError for a model that knows no conversations, and for what does not fit it."""
    if template is None:
        raise ApiError(
            400,
            "this model has no chat template: it was not trained on conversations; use /v1/completions",
            param="model",
            code="no_chat_template",
        )
    check_choices(body.choices, info)
    messages = [message.model_dump(include={"role", "content"}) for message in body.messages]
    try:
        data = template.render(messages, add_generation_prompt=True).data
    except ValueError as error:  # it names message, mark and place, and quotes nothing
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None
    limit = body.limit
    (prompt,) = sized_prompts([data], 1 if limit is None else limit, info, "messages")
    # The end of structured output follows from its form, and the template's mark may be part of a string.
    stops = () if body.structured else (*(text for text in body.stop if text != EOS_NAME), template.end)
    limit = info.context - prompt.size if limit is None else limit
    return _work(body, (prompt,), [limit], stops, bool(body.logprobs), body.top_logprobs or 0, False)


def check_choices(choices: int, info: ModelInfo) -> None:
    """Raises ApiError for more sequences than could ever wait and run."""
    most = info.limits.waiting + info.limits.sequences
    if choices > most:
        text = f"n: {choices:,} sequences are asked for, n for each prompt; the server takes {most:,} at once"
        raise ApiError(400, text, param="n", code="too_many")


def sized_prompts(
    prompts: Sequence[str | bytes | Sequence[int]], limit: int, info: ModelInfo, param: str
) -> tuple[PromptIds, ...]:
    """Prompts as ids. Raises ApiError where one and `limit` further bytes do not fit the context."""
    sized = []
    for at, prompt in enumerate(prompts):
        # One that is much too long is not converted first.
        size = len(prompt.encode()) if isinstance(prompt, str) else len(prompt)
        if size <= info.context + 1:
            sized.append(PromptIds.of(prompt))
            size = sized[-1].size
        if size + limit > info.context:
            name = param if len(prompts) == 1 else f"{param}[{at}]"
            raise ApiError(
                400,
                f"{name}: {size:,} bytes and max_tokens = {limit:,} are {size + limit:,}, the model's context holds "
                f"{info.context:,} bytes; shorten the prompt or lower max_tokens",
                param=name,
                code="context_length_exceeded",
            )
    return tuple(sized)


def _work(
    body: GenerationBody,
    prompts: tuple[PromptIds, ...],
    limits: Sequence[int],
    stops: Sequence[str],
    logprobs: bool,
    top: int,
    echo: bool,
) -> CompletionWork:
    seed = secrets.randbelow(_DRAWN) if body.seed is None else body.seed
    options: dict[str, Any] = {name: value for name in _OPTIONS if (value := getattr(body, name)) is not None}
    options |= {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "logit_bias": body.logit_bias,
        "stop": list(stops),
        "valid_utf8": bool(body.valid_utf8),
        "logprobs": logprobs,
        "top_logprobs": top,
    }
    if body.structured == "guided_regex":
        options["regex"] = body.guided_regex
    elif body.response_format is not None:
        options["json_schema"] = body.response_format.schema_of_answer
    if body.top_p is not None and body.top_p < 1:
        options["top_p"] = body.top_p
    if body.strategy is not None:
        options["strategy"] = _strategy(body.strategy)
    requests = []
    for prompt, limit in zip(prompts, limits, strict=True):
        try:
            first = parse_options(prompt.data, {**options, "max_bytes": limit, "seed": seed})
        except ValueError as error:
            raise _refused(body, error) from None
        seeded = [first.sampling.replace(seed=seed + i) for i in range(body.choices)]
        requests.append(tuple(replace(first, sampling=sampling) for sampling in seeded))
    return CompletionWork(
        prompts,
        tuple(requests),
        echo,
        logprobs,
        top,
        bool(body.bytes),
        bool(body.stream),
        body.include_usage,
    )


def _strategy(text: str) -> str:
    """The text. Raises ApiError for an unknown kind, without repeating it."""
    kind = text.partition(":")[0].strip()
    if kind not in STRATEGIES and kind.lower() not in ALIASES:
        raise invalid("strategy", f"there is no such strategy{nearest(kind.lower(), [*STRATEGIES, *ALIASES])}")
    return text


def _refused(body: GenerationBody, error: ValueError) -> ApiError:
    """The engine's own message names the field; it is passed on where no text of the user's can be in it."""
    if body.strategy is not None and ":" in body.strategy:
        return invalid(
            "strategy", f"its fields are not right; take {strategy_names()}, with fields as /docs shows them"
        )
    if isinstance(error, GrammarError):
        return invalid(str(body.structured), f"{error.reason}; `blt generate` shows where")
    if body.structured and str(error).startswith("max_bytes"):
        return ApiError(400, str(error).replace("max_bytes", "max_tokens"), param="max_tokens", code="invalid_value")
    message = str(error).replace("--strategy list", "/docs")
    param = next((name for name in (*_OPTIONS, "max_tokens", "strategy") if name in message), None)
    return ApiError(400, message, param=param, code="invalid_value")
