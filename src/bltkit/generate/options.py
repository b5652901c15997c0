"""The options of a generation as callers write them: one typed list for Python, its editors and the checks.

`Options` types the keywords of every method that generates (PEP 692), `spelled_out` shows them where a signature is
looked up at run time (`help`, Jupyter), `parse_options` checks values and makes the engine's `Request`.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypedDict, TypeVar, get_args, get_type_hints

from bltkit.config import nearest, parse
from bltkit.generate.constraint import Constraint, Utf8
from bltkit.generate.grammar import json_grammar, regex_grammar
from bltkit.generate.request import Request
from bltkit.generate.sampling import Sampling
from bltkit.generate.strategies import Strategy, parse_strategy
from bltkit.generate.structured_output import Structured
from bltkit.vocab import to_bytes

Stop = str | bytes | Sequence[str | bytes]

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Keywords of `ByteLM.generate`, `stream`, `samples`, `generate_many` and `generate_iter`."""

    max_bytes: int
    """Maximum number of bytes to generate, those of a stop string included."""
    strategy: str | Strategy
    """`ar`, `speculative`, `verified`, `diffusion`, `auto`, or the papers' names (`blt-s`, `blt-dv`, `blt-d`); with
    fields as in `diffusion:alpha=0.6`."""
    draft: int | None
    """Bytes drafted a round; of `diffusion` and `verified` the size of a block."""
    alpha: float | None
    """Block strategies: unmask bytes whose probability exceeds this."""
    gamma: float | None
    """Block strategies, in place of alpha: unmask the surest bytes up to so many nats of total entropy."""
    steps: int | None
    """Block strategies: maximum number of passes over a block."""
    align_border: bool
    """Block strategies: blocks begin where the open patch does."""
    temperature: float
    """0 is greedy."""
    top_k: int | None
    """Sample from the k most probable bytes."""
    top_p: float | None
    """Sample from the smallest set of bytes with this probability."""
    min_p: float | None
    """Sample from bytes at least this many times as probable as the most probable one."""
    repetition_penalty: float
    """Above 1: bytes of the last `repetition_window` become less probable."""
    repetition_window: int
    """Number of bytes that `repetition_penalty` looks back."""
    seed: int
    """A sample depends on it and the prompt alone."""
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    """What is added to the logits of ids (a byte's value + 4; 2 is EOS), -100 to 100."""
    stop: Stop
    """Strings that end the text and are not part of it."""
    valid_utf8: bool
    """Generate only valid UTF-8."""
    json_schema: Mapping[str, Any] | None
    """Generate one JSON text that is valid under this schema, within `max_bytes`."""
    regex: str | None
    """Generate a text that matches this regular expression (Rust's syntax) as a whole, within `max_bytes`."""
    logprobs: bool
    """Return the natural logarithm of every byte's probability."""
    top_logprobs: int
    """Return the k most probable ids for every byte, k from 0 to 20, with their log-probabilities."""


_TYPES: Mapping[str, Any] = get_type_hints(Options)

DEFAULTS: Mapping[str, Any] = types.MappingProxyType(
    dict.fromkeys(_TYPES)
    | {name: field.default for name, field in Sampling.model_fields.items()}
    | {"max_bytes": 256, "strategy": "ar", "align_border": False, "stop": (), "valid_utf8": False, "logprobs": False}
    | {"top_logprobs": 0}
)
"""What an option is where it is left out."""

_DRAFTING = ("draft", "alpha", "gamma", "steps")


@dataclass(frozen=True)
class Prompt:
    """A prompt of `generate_many`, with options of its own; None leaves those of the call.

    Raises ValueError for an option of the wrong type or out of range.
    """

    text: str | bytes
    seed: int | None = None
    max_bytes: int | None = None
    stop: Stop | None = None
    strategy: str | Strategy | None = None

    def __post_init__(self) -> None:
        parse_options(self.data, self.options)

    @property
    def data(self) -> bytes:
        """The prompt's bytes."""
        return prompt_bytes(self.text)

    @property
    def options(self) -> Options:
        """Options that differ from the call's."""
        options: Options = {}
        if self.seed is not None:
            options["seed"] = self.seed
        if self.max_bytes is not None:
            options["max_bytes"] = self.max_bytes
        if self.stop is not None:
            options["stop"] = self.stop
        if self.strategy is not None:
            options["strategy"] = self.strategy
        return options


def several_prompts(prompts: Iterable[str | bytes | Prompt]) -> Iterable[str | bytes | Prompt]:
    """The prompts. Raises ValueError for one text, whose letters would be taken for prompts, and what is no list."""
    if isinstance(prompts, str | bytes | bytearray | Prompt | Mapping) or not isinstance(prompts, Iterable):
        kind = type(prompts).__name__
        raise ValueError(f"prompts are of type {kind}; give a list of texts (generate takes a single prompt)")
    return prompts


def text_of(prompt: str | bytes | Prompt) -> str | bytes:
    """What is to be continued."""
    return prompt.text if isinstance(prompt, Prompt) else prompt


def prompt_bytes(prompt: Any) -> bytes:
    """Bytes of a prompt. Raises ValueError that names the type of anything but text and bytes."""
    if isinstance(prompt, str | bytes):
        return to_bytes(prompt)
    remedy = "give text or bytes"
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytearray | memoryview):
        remedy += "; generate_many takes several prompts"
    raise ValueError(f"prompt = {_shown(prompt)} is of type {type(prompt).__name__}; {remedy}")


def parse_options(prompt: bytes, options: Mapping[str, Any]) -> Request:
    """The request for the continuation of `prompt`; options left out have their `DEFAULTS`.

    Raises ValueError with one line that names the option, its value and what it should be.
    """
    values = {name: _option(name, value) for name, value in options.items()}
    stops = values.get("stop", ())
    return Request(
        sampling=parse(Sampling, {name: values[name] for name in Sampling.model_fields if name in values}, "sampling"),
        max_bytes=values.get("max_bytes", DEFAULTS["max_bytes"]),
        stop=tuple(to_bytes(text) for text in ([stops] if isinstance(stops, str | bytes) else stops)),
        constraint=_constraint(prompt, values),
        logprobs=values.get("logprobs", False),
        top_logprobs=values.get("top_logprobs", 0),
        strategy=_strategy(values),
    )


def _constraint(prompt: bytes, values: Mapping[str, Any]) -> Constraint | None:
    """The constraint of checked options. Raises ValueError for options that exclude each other.

    Structured output is valid UTF-8 by itself.
    """
    schema: Any = values.get("json_schema")
    pattern: Any = values.get("regex")
    if schema is None and pattern is None:
        return Utf8.behind(prompt) if values.get("valid_utf8") else None
    name = "regex" if schema is None else "json_schema"
    if schema is not None and pattern is not None:
        raise ValueError("json_schema and regex exclude each other; leave one out")
    if values.get("stop"):
        raise ValueError(f"stop cuts the output of {name} short; leave one of them out")
    grammar = regex_grammar(pattern) if schema is None else json_grammar(schema)
    return Structured.start(grammar, values.get("max_bytes", DEFAULTS["max_bytes"]))


def _strategy(values: Mapping[str, Any]) -> Strategy:
    """The strategy of checked options. Raises ValueError for fields beside a strategy that is a value."""
    strategy = values.get("strategy", DEFAULTS["strategy"])
    fields = {name: values[name] for name in _DRAFTING if values.get(name) is not None}
    fields |= {"align_border": True} if values.get("align_border") else {}
    if isinstance(strategy, str):
        return parse_strategy(strategy, **fields)
    for name, value in fields.items():
        raise ValueError(f"{name} = {value}: the strategy is given as a value; set the field there")
    return strategy


def at_least_one(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{name} = {_shown(value)} must be a whole number of at least 1")


def spelled_out(method: F) -> F:
    """The method, whose signature at run time names every option with its default in place of `**options`."""
    signature = inspect.signature(method)
    parameters = [value for value in signature.parameters.values() if value.kind is not value.VAR_KEYWORD]
    named = {value.name for value in parameters}
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter(name, keyword_only, default=DEFAULTS[name], annotation=annotation)
        for name, annotation in _TYPES.items()
        if name not in named
    ]
    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value where it is of `kind`: bool, int, float, str, None or a union; a number of numpy as Python's own.

    Raises ValueError that names the value and what it should be.
    """
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool) or not isinstance(value, Real):
        if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
            return value
    elif int in kinds and isinstance(value, Integral):
        return int(value)
    elif float in kinds:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} = {_shown(value)}: is too large") from None
    raise ValueError(f"{name} = {_shown(value)}: must be {_WORDS[next(word for word in _WORDS if word in kinds)]}")


def _option(name: str, value: Any) -> Any:
    if name not in _TYPES:
        raise ValueError(f"unknown option {name!r}{nearest(name, list(_TYPES))}")
    if name == "logit_bias":
        return _biases(value)
    if name == "json_schema":
        if value is None or isinstance(value, Mapping):
            return value
        raise ValueError(f"json_schema = {_shown(value)}: must be a JSON schema, as a mapping")
    if name != "stop":
        return typed(name, value, _TYPES[name])
    texts = [value] if isinstance(value, str | bytes) else value
    if isinstance(texts, Sequence) and all(isinstance(text, str | bytes) for text in texts):
        return value
    raise ValueError(f"stop = {_shown(value)}: must be text, bytes or a list of them")


def _biases(value: Any) -> Any:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, Sequence) or isinstance(pairs, str | bytes):
        raise ValueError(f"logit_bias = {_shown(value)}: must be a mapping from ids to numbers")
    for pair in pairs:
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"logit_bias = {_shown(value)}: must be a mapping from ids to numbers")
    return tuple((typed("logit_bias: id", at, int), typed("logit_bias", bias, float)) for at, bias in pairs)


_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Strategy: "a strategy's name, KIND:FIELD=VALUE, or a Strategy",
    str: "text",
}


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = f"a {type(value).__name__} of more than 4,000 digits"
    return text if len(text) <= 60 else text[:60] + "..."
