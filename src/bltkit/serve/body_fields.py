"""Types of the fields of requests that have more than one form, with what a schema says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function

from bltkit.generate import STRATEGIES
from bltkit.generate.sampling import MAX_BIAS
from bltkit.generate.strategies import ALIASES
from bltkit.vocab import BOS, EOS, OFFSET, VOCAB_SIZE

MAX_PROMPTS = 4096
"""Of a request; how many sequences a server takes at once is bounded besides."""
MAX_STOPS, MAX_STOP_CHARACTERS = 32, 1024
MAX_TEXT_FIELD = 1024
"""Characters of `user` and its like."""

_READABLE = frozenset((BOS, EOS, *range(OFFSET, VOCAB_SIZE)))
"""Ids that may stand in a prompt."""


@dataclass(frozen=True, eq=False)  # equal marks would share one type: 0 == False
class Neutral:
    """Marks a field that is accepted with `values` and null alone, which change nothing."""

    values: tuple[Any, ...] = ()

    def check(self, value: Any) -> Any:
        """The value. Raises ValueError for one that would have to change something."""
        # 0 == False in Python, and in JSON they are different things.
        same = [value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.values]
        if value is None or any(same):
            return value
        shown = " or ".join(["null", *(_shown(each) for each in self.values)])
        raise ValueError(f"is not supported; leave it out (accepted is {shown}, which changes nothing)")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        text = "Not supported; accepted with values that change nothing."
        return {"enum": [None, *self.values], "description": text}


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def whole(value: Any) -> Any:
    """2.0 is the whole number 2 in JSON, and JavaScript knows no other."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_ids(value: Any) -> bool:
    """A list of whole numbers. Lists may be long, and the loop of all streams waits: sets are quick."""
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))
    return kinds <= {int} or (kinds <= {int, float} and all(type(each) is int or each.is_integer() for each in value))


def _one_prompt(value: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if not _is_ids(value):
        raise ValueError(f"{where}must be a text or a list of ids")
    ids = tuple(map(int, value))
    if not _READABLE.issuperset(ids):
        at, chosen = next((at, chosen) for at, chosen in enumerate(ids) if chosen not in _READABLE)
        shown = chosen if abs(chosen) < 10**9 else "of many digits"
        raise ValueError(
            f"{where}id {shown} at place {at} cannot be read; ids are a byte's value + {OFFSET}, up to "
            f"{VOCAB_SIZE - 1}, {BOS} (BOS) and {EOS} (EOS)"
        )
    return ids


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, texts, ids or lists of ids as several prompts; null is the empty prompt."""
    if value is None:
        return ("",)
    if isinstance(value, str) or _is_ids(value):
        return (_one_prompt(value, ""),)
    if not isinstance(value, list):
        raise ValueError("must be a text, a list of texts, a list of ids or a list of lists of ids")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"holds {len(value):,} prompts; at most {MAX_PROMPTS:,} are taken")
    if not all(isinstance(each, type(value[0])) for each in value) or not isinstance(value[0], str | list):
        raise ValueError("must be a text, a list of texts, a list of ids or a list of lists of ids; not a mixture")
    return tuple(_one_prompt(each, f"prompt {at}: ") for at, each in enumerate(value))


_ID = {"anyOf": [{"type": "integer", "minimum": OFFSET, "maximum": VOCAB_SIZE - 1}, {"enum": [BOS, EOS]}]}
_IDS: dict[str, Any] = {"type": "array", "items": _ID}
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


def _checked_ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not _is_ids(value):
        raise ValueError("must be a list of ids")
    ids = _one_prompt(value, "")
    assert not isinstance(ids, str)
    return ids


Ids = Annotated[tuple[int, ...], PlainValidator(_checked_ids), WithJsonSchema(_IDS)]
Label = Annotated[str, Field(max_length=MAX_TEXT_FIELD)] | None
"""A short text that is only a label."""


def _top_k(value: Any) -> Any:
    """-1 and 0 are how other servers write that there is none."""
    return None if value in (-1, 0) and not isinstance(value, bool) else value


def strategy_names() -> str:
    """For messages."""
    return ", ".join([*STRATEGIES, *ALIASES])


def _strategy(value: Any) -> Any:
    if value is None or (isinstance(value, str) and len(value) <= 200):
        return value
    raise ValueError(f"must be one of {strategy_names()}, or one of them with fields, as in speculative:draft=8")


TopK = Annotated[
    Annotated[int, Field(ge=1)] | None,
    BeforeValidator(_top_k),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -1}, {"type": "null"}]}),
]
StrategyName = Annotated[str | None, BeforeValidator(_strategy)]
