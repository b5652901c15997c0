"""What clients may send: OpenAI's fields and ours, checked.

Fields of OpenAI's that change nothing here are accepted with the values that change nothing there either; other values
are refused, and so are unknown fields. Nothing is ignored silently.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bltkit.generate.grammar import JSON_OBJECT, MAX_CHARACTERS
from bltkit.generate.request import MAX_TOPS
from bltkit.serve.body_fields import Biases, Ids, Label, Neutral, OnePrompt, Prompts, Stops, StrategyName, TopK, whole

MAX_CHOICES = 128
"""`n`, as OpenAI bounds it."""
DEFAULT_COMPLETION_BYTES = 16
"""OpenAI's default of a completion's max_tokens."""


class Body(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return {name: whole(each) for name, each in value.items()} if isinstance(value, dict) else value


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    """Send a last event with `usage` and no choices."""
    include_obfuscation: Annotated[Any, Neutral((False,))] = None


class JsonSchemaFormat(Body):
    """`json_schema` of a response format."""

    name: Label = None
    description: Label = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """A JSON schema (2020-12). Keywords that cannot be enforced are refused."""
    strict: bool | None = None
    """The schema is always enforced."""


class ResponseFormat(Body):
    """The form of the answer: free text, any JSON object, or JSON that is valid under a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _agree(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: belongs to type json_schema; give both or none")
        return self

    @property
    def schema_of_answer(self) -> Mapping[str, Any] | None:
        """The JSON schema of the answer; None for free text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return JSON_OBJECT if self.type == "json_object" else None


class GenerationBody(Body):
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
    top_k: TopK = None
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
    strategy: StrategyName = None
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
    response_format: ResponseFormat | None = None
    """`json_object` and `json_schema`: the answer is one JSON text, complete within max_tokens."""
    guided_regex: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)] | None = None
    """The answer matches this regular expression (Rust's syntax) as a whole, within max_tokens."""
    bytes: bool | None = None
    """Send the raw bytes as base64 in `bytes` beside the text."""
    frequency_penalty: Annotated[Any, Neutral((0,))] = None
    presence_penalty: Annotated[Any, Neutral((0,))] = None

    @model_validator(mode="after")
    def _agree(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is for streams; leave it out, or set stream to true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_completion_tokens: differs from max_tokens; give one of them")
        if self.structured and self.stop:
            raise ValueError("stop: cuts structured output short; leave it out")
        if self.guided_regex is not None and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("guided_regex: excludes response_format; leave one of them out")
        return self

    @property
    def structured(self) -> str | None:
        """The field that gives the answer its form; None for free text."""
        if self.guided_regex is not None:
            return "guided_regex"
        return None if self.response_format is None or self.response_format.type == "text" else "response_format"

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


class CompletionRequest(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    """Put the prompt in front of the answer, and with `logprobs` score it."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOPS)] | None = None
    """Log-probabilities of every byte, and of the k most probable bytes at its position."""
    best_of: Annotated[Any, Neutral((1,))] = None
    suffix: Annotated[Any, Neutral(("",))] = None


class TextPart(Body):
    """A part of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: Annotated[Any, Neutral()] = None
    tool_call_id: Label = None
    """Accepted, and not shown to the model."""
    tool_calls: Annotated[Any, Neutral(([],))] = None
    function_call: Annotated[Any, Neutral()] = None
    refusal: Annotated[Any, Neutral()] = None
    audio: Annotated[Any, Neutral()] = None
    annotations: Annotated[Any, Neutral(([],))] = None


class ChatRequest(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool | None = None
    """Log-probabilities of every byte."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOPS)] | None = None
    """Also of the k most probable bytes at its position."""
    tools: Annotated[Any, Neutral(([],))] = None
    tool_choice: Annotated[Any, Neutral(("none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, Neutral((True, False))] = None
    functions: Annotated[Any, Neutral(([],))] = None
    function_call: Annotated[Any, Neutral(("none", "auto"))] = None
    modalities: Annotated[Any, Neutral((["text"],))] = None
    audio: Annotated[Any, Neutral()] = None
    prediction: Annotated[Any, Neutral()] = None
    reasoning_effort: Annotated[Any, Neutral(("none",))] = None
    verbosity: Annotated[Any, Neutral(("medium",))] = None
    web_search_options: Annotated[Any, Neutral()] = None
    metadata: Annotated[Any, Neutral(({},))] = None
    store: Annotated[Any, Neutral((False,))] = None
    service_tier: Annotated[Any, Neutral(("auto", "default"))] = None
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
    tokens: Ids


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
