"""What clients may send: OpenAI's fields and ours, checked.

Fields of OpenAI's that change nothing here are accepted with the values that change nothing there either; other values
are refused, and so are unknown fields. Nothing is ignored silently.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from bltkit.generate import STRATEGIES
from bltkit.generate.request import MAX_TOPS
from bltkit.generate.sampling import MAX_BIAS
from bltkit.generate.strategies import ALIASES
from bltkit.serve.tokens import readable
from bltkit.vocab import BOS, OFFSET, VOCAB_SIZE

MAX_CHOICES = 128
"""`n`, as OpenAI bounds it."""
MAX_STOPS, MAX_STOP_CHARACTERS = 32, 1024
MAX_TEXT_FIELD = 1024
"""Characters of `user` and its like."""
DEFAULT_COMPLETION_BYTES = 16
"""OpenAI's default of a completion's max_tokens."""


def _neutral(*values: Any) -> Any:
    """The type of a field that is accepted with `values` and null alone."""
    shown = " or ".join(["null", *(_shown(value) for value in values)])

    def check(value: Any) -> Any:
        # 0 == False in Python, and in JSON they are different things.
        if value is None or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            return value
        raise ValueError(f"is not supported; leave it out (accepted are {shown}, which change nothing)")

    schema = {"enum": [None, *values], "description": "Not supported; accepted with values that change nothing."}
    return Annotated[Any, PlainValidator(check), WithJsonSchema(schema)]


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)


def _one_prompt(value: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if not _is_ids(value):
        raise ValueError(f"{where}must be a text or a list of ids")
    for at, chosen in enumerate(value):
        if not readable(chosen):
            shown = chosen if abs(chosen) < 10**9 else "of many digits"
            raise ValueError(
                f"{where}id {shown} at place {at} cannot be read; ids are a byte's value + {OFFSET}, up to "
                f"{VOCAB_SIZE - 1}, {BOS} (BOS) and 2 (EOS)"
            )
    return tuple(value)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, texts, ids or lists of ids as several prompts; null is the empty prompt."""
    if value is None:
        return ("",)
    if isinstance(value, str) or _is_ids(value):
        return (_one_prompt(value, ""),)
    if not isinstance(value, list):
        raise ValueError("must be a text, a list of texts, a list of ids or a list of lists of ids")
    if not all(isinstance(each, type(value[0])) for each in value) or not isinstance(value[0], str | list):
        raise ValueError("must be a text, a list of texts, a list of ids or a list of lists of ids; not a mixture")
    return tuple(_one_prompt(each, f"prompt {at}: ") for at, each in enumerate(value))


_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": VOCAB_SIZE - 1}}
_TEXT = {"type": "string"}
_PROMPTS_SCHEMA: dict[str, Any] = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _IDS, {"type": "array", "items": _IDS}, {"type": "null"}],
    "description": "A text, texts, ids (a byte's value + 4; 1 is BOS, 2 EOS) or lists of ids.",
}
Prompts = Annotated[tuple[str | tuple[int, ...], ...], PlainValidator(_prompts), WithJsonSchema(_PROMPTS_SCHEMA)]
OnePrompt = Annotated[
    str | tuple[int, ...],
    PlainValidator(lambda value: _one_prompt(value, "")),
    WithJsonSchema({"anyOf": [_TEXT, _IDS], "description": "A text or ids."}),
]


def _stops(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be a text or a list of texts")
    if len(texts) > MAX_STOPS:
        raise ValueError(f"holds {len(texts)} texts; at most {MAX_STOPS} are taken")
    for at, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {at} is empty, which would end every answer at once; leave it out")
        if len(text) > MAX_STOP_CHARACTERS:
            raise ValueError(f"text {at} has {len(text):,} characters; at most {MAX_STOP_CHARACTERS:,} are taken")
    return tuple(texts)


Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                    "maxItems": MAX_STOPS,
                },
                {"type": "null"},
            ],
            "description": "Texts that end the answer and are not part of it; the name of EOS means EOS.",
        }
    ),
]


def _biases(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("must be an object of ids and numbers")
    biases = {}
    for key, bias in value.items():
        chosen = int(key) if key.isascii() and key.isdigit() and len(key) < 4 else None
        if chosen is None or not (chosen == 2 or OFFSET <= chosen < VOCAB_SIZE):
            raise ValueError(
                f"keys must be ids that can be generated: a byte's value + {OFFSET}, up to {VOCAB_SIZE - 1}, or 2 (EOS)"
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise ValueError(f"the bias of id {chosen} must be a number from -{MAX_BIAS:g} to {MAX_BIAS:g}")
        if chosen in biases:
            raise ValueError(f"id {chosen} is given twice")
        biases[chosen] = float(bias)
    return biases


Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^(2|[4-9]|[1-9][0-9]|1[0-9][0-9]|2[0-5][0-9])$"},
                    "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
                },
                {"type": "null"},
            ],
            "description": "Added to the raw logits of ids: a byte's value + 4, or 2 for EOS.",
        }
    ),
]


def _top_k(value: Any) -> Any:
    """-1 and 0 are how other servers write that there is none."""
    return None if value in (-1, 0) and not isinstance(value, bool) else value


def _strategy(value: Any) -> Any:
    if value is None or (isinstance(value, str) and len(value) <= 200):
        return value
    raise ValueError(f"must be one of {strategy_names()}, or one of them with fields, as in speculative:draft=8")


def strategy_names() -> str:
    """For messages."""
    return ", ".join([*STRATEGIES, *ALIASES])


class Body(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Label = Annotated[str, Field(max_length=MAX_TEXT_FIELD)] | None


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    """Send a last event with `usage` and no choices."""
    include_obfuscation: _neutral(False) = None  # type: ignore[valid-type]


class Generation(Body):
    """What completions and chats have in common."""

    model: Label = None
    """The served model's name, or null."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Maximum number of bytes to generate, those of a stop string included."""
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    """The same."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """1 by default; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the smallest set of bytes with this probability."""
    top_k: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_top_k)] = None
    """Sample from the k most probable bytes; also 0 or -1 for all of them."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample from bytes at least this many times as probable as the most probable one."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """Above 1: bytes of the last `repetition_window` become less probable."""
    repetition_window: Annotated[int, Field(ge=1, le=2**31)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The answer depends on it, the prompt and the options alone; choice i is that of seed + i. Drawn if left out, and
    told in the answer."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Choices for each prompt."""
    stop: Stops = ()
    logit_bias: Biases = {}
    stream: bool | None = None
    """Send the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    user: Label = None
    """Accepted, and not used."""
    strategy: Annotated[str | None, BeforeValidator(_strategy)] = None
    """How it decodes: ar, speculative, verified, diffusion, auto; also with fields, as in speculative:draft=8."""
    draft: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Bytes drafted a round, or of a block."""
    alpha: float | None = None
    """Block strategies: unmask bytes whose probability exceeds this."""
    gamma: float | None = None
    """Block strategies, in place of alpha: the surest bytes up to so many nats of entropy."""
    steps: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Block strategies: maximum number of passes over a block."""
    valid_utf8: bool | None = None
    """Generate only valid UTF-8."""
    bytes: bool | None = None
    """Send the raw bytes as base64 in `bytes` beside the text."""
    frequency_penalty: _neutral(0) = None  # type: ignore[valid-type]
    presence_penalty: _neutral(0) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _agree(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is for streams; leave it out, or set stream to true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_completion_tokens: differs from max_tokens; give one of them")
        return self

    @property
    def limit(self) -> int | None:
        """Bytes to generate; None where nothing is said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def choices(self) -> int:
        """For each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """At the end of a stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(Generation):
    """`POST /v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    """Put the prompt in front of the answer, and with `logprobs` score it."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOPS)] | None = None
    """Log-probabilities of every byte, and of so many most probable ones in its place."""
    best_of: _neutral(1) = None  # type: ignore[valid-type]
    suffix: _neutral("") = None  # type: ignore[valid-type]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: _neutral() = None  # type: ignore[valid-type]
    tool_call_id: Label = None
    """Accepted, and not shown to the model."""
    tool_calls: _neutral([]) = None  # type: ignore[valid-type]
    function_call: _neutral() = None  # type: ignore[valid-type]
    refusal: _neutral() = None  # type: ignore[valid-type]
    audio: _neutral() = None  # type: ignore[valid-type]
    annotations: _neutral([]) = None  # type: ignore[valid-type]


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool | None = None
    """Log-probabilities of every byte."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOPS)] | None = None
    """Also of so many most probable bytes in its place."""
    tools: _neutral([]) = None  # type: ignore[valid-type]
    tool_choice: _neutral("none", "auto") = None  # type: ignore[valid-type]
    parallel_tool_calls: _neutral(True, False) = None  # type: ignore[valid-type]
    functions: _neutral([]) = None  # type: ignore[valid-type]
    function_call: _neutral("none", "auto") = None  # type: ignore[valid-type]
    response_format: _neutral({"type": "text"}) = None  # type: ignore[valid-type]
    modalities: _neutral(["text"]) = None  # type: ignore[valid-type]
    audio: _neutral() = None  # type: ignore[valid-type]
    prediction: _neutral() = None  # type: ignore[valid-type]
    reasoning_effort: _neutral("none") = None  # type: ignore[valid-type]
    verbosity: _neutral("medium") = None  # type: ignore[valid-type]
    web_search_options: _neutral() = None  # type: ignore[valid-type]
    metadata: _neutral({}) = None  # type: ignore[valid-type]
    store: _neutral(False) = None  # type: ignore[valid-type]
    service_tier: _neutral("auto", "default") = None  # type: ignore[valid-type]
    prompt_cache_key: Label = None
    """Accepted, and not used: prefixes are cached by what they are."""
    safety_identifier: Label = None
    """Accepted, and not used."""

    @model_validator(mode="after")
    def _alternatives(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs; set it to true")
        return self


class TokenizeRequest(Body):
    """`POST /tokenize`."""

    model: Label = None
    prompt: str
    add_special_tokens: bool | None = None
    """Put BOS in front; true by default."""


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: Label = None
    tokens: Annotated[
        Sequence[int],
        PlainValidator(lambda value: _checked_ids(value)),
        WithJsonSchema(_IDS),
    ]


class PatchesRequest(Body):
    """`POST /v1/patches`."""

    model: Label = None
    input: OnePrompt


class ScoreRequest(Body):
    """`POST /v1/score`."""

    model: Label = None
    input: Prompts
    """As the prompt of a completion: a text, texts, ids or lists of ids."""
    logprobs: bool | None = None
    """Also tell every byte's log-probability."""


def _checked_ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not _is_ids(value):
        raise ValueError("must be a list of ids")
    ids = _one_prompt(value, "")
    assert not isinstance(ids, str)
    return ids
