"""Frozen configuration values, read from TOML with dotted overrides: the only config system of the project.

A part of the system that has settings declares a `Config` beside its code; `parse` turns a plain mapping into one
and names the nearest known key when a key is unknown, because a silently ignored setting costs a training run.
"""

import ast
import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bltkit.files import parse_toml, read_toml

T = TypeVar("T")


class Config(BaseModel):
    """A frozen mapping of named settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, validated like a new value. Raises ValueError on a bad field."""
        data = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(data | changes)


def parse(kind: type[T] | Any, data: Any, where: str) -> T:
    """Validate `data` as `kind` (a Config class or a union of them).

    `where` names the origin in messages (a file, an option). Raises ValueError with one line that names the field,
    its value and the remedy.
    """
    adapter = TypeAdapter(kind)
    try:
        result: T = adapter.validate_python(data)
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(error, adapter)}") from None
    return result


def load_toml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file and apply dotted overrides (`trainer.max_steps=10`) on top.

    Values are parsed as TOML; what is no TOML value is taken as a string, so that `model.kind=blt` needs no quotes.
    Raises ValueError for a missing file, a directory, broken TOML or a broken override.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name a TOML file in it")
    if not path.exists():
        raise ValueError(f"config file {path} does not exist")
    return apply_overrides(read_toml(path), overrides)


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with every `dotted.key=value` of `overrides` set."""
    result: dict[str, Any] = _copy(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ValueError(f"override {override!r} is not of the form section.key=value")
        table = result
        for name in names[:-1]:
            child = table.setdefault(name, {})
            if not isinstance(child, dict):
                raise ValueError(f"override {override!r}: {name} is a value, not a section")
            table = child
        table[names[-1]] = parse_value(text.strip())
    return result


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        parsed = parse_toml(f"value = {text}", "value")
    except ValueError:
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break could begin a second key


def dump_toml(data: Mapping[str, Any]) -> str:
    """Write nested mappings of plain values as TOML (None is left out: an absent key is the default)."""
    return "\n".join(_dump_table(data, ())) + "\n"


def nearest(name: str, known: Sequence[str]) -> str:
    """` (did you mean X?)`, or the list of what is known: the tail of an error message."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _dump_table(data: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in data.items() if not isinstance(value, Mapping) and value is not None}
    if path and (plain or not data):
        yield f"[{'.'.join(map(_dump_key, path))}]"
    for key, value in plain.items():
        yield f"{_dump_key(key)} = {_dump_value(value)}"
    if plain:
        yield ""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _dump_table(value, (*path, key))


def _dump_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _dump_value(key)


def _dump_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_dump_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        items = (f"{_dump_key(k)} = {_dump_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + ", ".join(items) + " }"
    # JSON's escapes are TOML's, but for DEL, which JSON lets stand.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _explain(error: ValidationError, adapter: TypeAdapter[Any]) -> str:
    # A misspelt required key is both unknown and missing; the unknown one shows the slip.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    names, siblings = _locate(adapter, first["loc"])
    field = ".".join(names)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            known = {key for node in siblings for key in node.get("properties", {})}
            return f"unknown key {field!r}{nearest(names[-1], sorted(known))}{more}"
        case "missing":
            return f"key {field!r} is missing{_such_as(names, siblings)}{more}"
        case "union_tag_invalid":
            kinds = re.findall(r"'([^']*)'", first["ctx"]["expected_tags"])
            return f"{'.'.join((*names, 'kind'))} = {first['ctx']['tag']!r}{nearest(first['ctx']['tag'], kinds)}{more}"
        case "union_tag_not_found":
            return f"key {'.'.join((*names, 'kind'))!r} is missing{more}"
        case "value_error":
            return f"{field}{': ' if field else ''}{first['ctx']['error']}{more}"
    found = repr(first["input"])
    found = found if len(found) <= _MAX_SHOWN else found[:_MAX_SHOWN] + "..."
    return f"{field or 'value'} = {found}: {first['msg']}{more}"


_MAX_SHOWN = 80


def _such_as(names: Sequence[str], siblings: Sequence[dict[str, Any]]) -> str:
    """An example of a key of an inner table; what reads a short form gives one of the whole form."""
    nodes = [node["properties"][names[-1]] for node in siblings if names[-1] in node.get("properties", {})]
    examples = [example for node in nodes for example in node.get("examples", [])]
    return f"; for example {names[-1]} = {_dump_value(examples[-1])}" if examples and len(names) > 1 else ""


def _locate(adapter: TypeAdapter[Any], location: tuple[int | str, ...]) -> tuple[list[str], list[dict[str, Any]]]:
    """The key as a user writes it, and the schemas (all members of a union) of the table that holds it.

    pydantic puts the tag of a union's member into the location; no key of the file bears that name.
    """
    schema = adapter.json_schema(mode="validation")
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        options = node.get("anyOf", []) + node.get("oneOf", []) + node.get("allOf", [])
        # A union may have keys of its own beside its members'.
        own = [node] if "properties" in node or not options else []
        return own + [found for option in options for found in resolve(option)]

    names: list[str] = []
    nodes, table, chosen = resolve(schema), [], False
    for part in location:
        kinds = [node.get("properties", {}).get("kind", {}).get("const") for node in nodes]
        if part in kinds and sum(kind is not None for kind in kinds) > 1 and not chosen:
            nodes = [node for node, kind in zip(nodes, kinds, strict=True) if kind in (part, None)]
            chosen = True  # the next part is a key of that member, also where it reads like a tag
            continue
        names.append(str(part))
        inner = [child for node in nodes for child in resolve(node.get("properties", {}).get(part, {})) if child]
        inner += [child for node in nodes if "items" in node for child in resolve(node["items"])]
        nodes, table, chosen = inner, nodes, False
    return names, table


def field_doc(kind: type[Config], name: str) -> str:
    """The meaning of a field: the string under it in the class, or in the nearest base that declares it.

    Read from the source when asked for: classes cost nothing more to import.
    """
    for base in kind.__mro__:
        if base is Config or not issubclass(base, Config):
            break
        if name in _attribute_docs(base):
            return _attribute_docs(base)[name]
    return kind.model_fields[name].description or ""


@cache
def _attribute_docs(kind: type[Config]) -> dict[str, str]:
    """The strings under the fields that a class itself declares."""
    statements = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(statements, ast.ClassDef)
    docs = {}
    for statement, after in pairwise(statements.body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
            docs[statement.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return docs


def example_of(kind: type[Config]) -> str:
    """`KIND:FIELD=VALUE,...` with the fields that have no default, each as its last example; else its name."""
    values = {}
    for name, field in kind.model_fields.items():
        if field.is_required() and name != "kind":
            values[name] = (field.examples or [name.upper()])[-1]
    items = ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
    tag = kind.model_fields["kind"].default
    return f"{tag}:{items}" if items else str(tag)


def default_of(kind: type[Config], name: str) -> str:
    """`required`, or `default VALUE`."""
    field = kind.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "default: none"
    if isinstance(value, Config):
        value = value.model_dump(exclude_defaults=True) or "as its own defaults say"
        return f"default: {value}"
    if isinstance(value, tuple) and any(isinstance(item, Config) for item in value):
        return "default: " + ", ".join(str(getattr(item, "kind", item)) for item in value)
    return f"default: {_dump_value(value)}"


def type_of(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The type of a JSON schema's node in words, bounds and allowed values included."""
    if "$ref" in node:
        target = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        tag = target.get("properties", {}).get("kind", {}).get("const")
        return f"table of kind {tag!r}" if tag else "table"
    options = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
    if options:
        return " or ".join(dict.fromkeys(type_of(option, schema) for option in options if option.get("type") != "null"))
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return " or ".join(map(json.dumps, node["enum"]))
    if node.get("type") == "array":
        inner: Mapping[str, Any] = node.get("items") or next(iter(node.get("prefixItems", [])), {})
        return f"list of {type_of(inner, schema)}"
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "object": "table",
    }
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node)
    return " ".join(filter(None, (names.get(node.get("type", ""), "any value"), bounds)))
