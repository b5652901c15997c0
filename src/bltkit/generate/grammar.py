"""Grammars of structured output: JSON schemas and regular expressions, compiled by llguidance over the 256 bytes.

llguidance (extra `structured`) refuses the keywords of JSON Schema that it does not implement; keywords that no draft
knows are refused here, so that nothing in a schema is ignored.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from bltkit.files import parse_json
from bltkit.generate.shortest_match import shortest_match
from bltkit.vocab import EOS, OFFSET, VOCAB_SIZE

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CHARACTERS = 65_536
"""Length of a schema or an expression."""

JSON_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of `response_format: {"type": "json_object"}`."""

_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""At most one space, after a comma or a colon: white space without end would use up the budget."""

_ANNOTATIONS = frozenset({"$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated"}) | {
    *("description", "examples", "readOnly", "title", "writeOnly", "contentEncoding", "contentMediaType")
}
"""Keywords that constrain nothing, and those that other keywords refer to."""


class GrammarError(ValueError):
    """A schema or an expression that cannot be enforced.

    reason: the message without any text of the schema or expression, for logs and answers that others read.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Grammar:
    """A language of byte strings: a JSON schema (as JSON text) or a regular expression.

    Two grammars are equal where their texts are; a grammar travels between processes as its text.
    """

    kind: Literal["json_schema", "regex"]
    text: str

    @property
    def hints(self) -> tuple[bytes, ...]:
        """Texts in the language that are hard to come by: short matches of the expressions, those of a schema as JSON
        strings."""
        return _hints(self)

    def start(self) -> "LLMatcher":
        """A matcher before the first byte. Raises GrammarError for what cannot be enforced."""
        matcher: LLMatcher = _compiled(self).deep_copy()
        return matcher


def json_grammar(schema: Mapping[str, Any]) -> Grammar:
    """The grammar of the JSON texts that are valid under a schema (JSON Schema 2020-12), as a value.

    Raises GrammarError where the schema is not valid, or has a keyword or format that cannot be enforced.
    """
    text = json.dumps(schema, ensure_ascii=False)
    _check_size("json_schema", text)
    _check_schema(schema)
    return _checked(Grammar("json_schema", text))


def regex_grammar(pattern: str) -> Grammar:
    """The grammar of the texts that match a regular expression (Rust's syntax) from beginning to end.

    Raises GrammarError for an expression that cannot be parsed, or that looks around or back.
    """
    _check_size("regex", pattern)
    return _checked(Grammar("regex", pattern))


def _check_size(name: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        reason = f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are taken"
        raise GrammarError(f"{name}: {reason}", reason)


def _checked(grammar: Grammar) -> Grammar:
    _compiled(grammar)
    return grammar


def _check_schema(schema: Mapping[str, Any]) -> None:
    jsonschema = _library("jsonschema")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        # The path may hold names of the user's; the keyword is one of the standard's.
        at = "/".join(map(str, error.absolute_path)) or "the top"
        keyword = error.absolute_path[-1] if error.absolute_path else ""
        reason = "it is not valid under JSON Schema 2020-12"
        if keyword in jsonschema.Draft202012Validator.VALIDATORS:
            reason += f": {keyword!r} has a wrong value"
        raise GrammarError(f"json_schema: {at}: {error.message}", reason) from None
    except RecursionError:
        raise GrammarError("json_schema: it is nested too deeply", "it is nested too deeply") from None
    keywords = _ANNOTATIONS | set(jsonschema.Draft202012Validator.VALIDATORS)
    for subschema in _subschemas(schema):
        for keyword in subschema.keys() - keywords:
            reason = "it has a keyword that JSON Schema 2020-12 does not know"
            raise GrammarError(f"json_schema: unknown keyword {keyword!r}; remove it", reason)


def _subschemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema and all schemas in it."""
    specification = _library("referencing.jsonschema").DRAFT202012
    waiting: list[Any] = [schema]
    while waiting:
        subschema = waiting.pop()
        if isinstance(subschema, Mapping):  # others are true and false
            yield subschema
            waiting += specification.subresources_of(subschema)
            waiting += subschema.get("definitions", {}).values()  # the name of $defs in earlier drafts


@lru_cache(maxsize=64)
def _hints(grammar: Grammar) -> tuple[bytes, ...]:
    if grammar.kind == "regex":
        match = shortest_match(grammar.text)
        return () if match is None else (match.encode("utf-8", "replace"),)
    patterns = set()
    for schema in _subschemas(parse_json(grammar.text, "json_schema")):
        patterns |= {schema["pattern"]} if "pattern" in schema else set()
        patterns |= set(schema.get("patternProperties", ()))
    matches = {match for pattern in patterns if (match := shortest_match(pattern)) is not None}
    return tuple(json.dumps(match, ensure_ascii=False).encode("utf-8", "replace") for match in sorted(matches, key=len))


@lru_cache(maxsize=64)
def _compiled(grammar: Grammar) -> "LLMatcher":
    """A matcher that nobody moves: callers copy it."""
    llguidance = _library("llguidance")
    if grammar.kind == "regex":
        source = llguidance.LLMatcher.grammar_from_regex(grammar.text)
    else:
        source = llguidance.LLMatcher.grammar_from_json_schema(grammar.text, overrides=_SEPARATORS)
    matcher: LLMatcher = llguidance.LLMatcher(_tokenizer(), source, log_level=0)
    if matcher.is_error():
        message = " ".join(matcher.get_error().partition("\n<")[0].split())
        # Names of keywords are the standard's own, once unknown ones have been refused.
        reason = message if message.startswith("Unimplemented keys: ") else "it cannot be enforced"
        raise GrammarError(f"{grammar.kind}: it cannot be enforced: {message}", reason)
    return matcher


@cache
def _tokenizer() -> "LLTokenizer":
    """Our ids: byte + 4; the ids below are special, and only EOS of them is ever emitted."""
    llguidance = _library("llguidance")

    class Bytes:
        eos_token_id, bos_token_id, unk_token_id = EOS, None, None
        special_token_ids = tuple(range(OFFSET))
        tokens = (*(f"<{special}>".encode() for special in special_token_ids), *(bytes([byte]) for byte in range(256)))

        def __call__(self, text: str | bytes) -> list[int]:
            return [byte + OFFSET for byte in (text.encode() if isinstance(text, str) else text)]

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=VOCAB_SIZE, slices=[])


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        message = f"structured output needs {package}: pip install 'bltkit[structured]'"
        raise GrammarError(message, message) from None
