"""The reference of all config keys, made from the classes: `blt train --keys`, `--schema`, docs/configuration.md.

One source: the fields, and the string under each. `sections` walks the classes; the table, the page and the JSON schema
are three ways to write down what it finds.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo

from bltkit.config import Config, default_of, field_doc, type_of
from bltkit.model.presets import BLT_PRESETS, ENTROPY_PRESETS
from bltkit.registry import Registry
from bltkit.train.config import TrainConfig

_SHORT = {
    "patching.rule": "KIND:FIELD=VALUE,... as text",
    "data.sources": "paths, globs and `stdlib` as text",
    "optim.schedule": "the name alone as text",
}
"""Keys that also take a text in place of a table."""


@dataclass(frozen=True)
class Key:
    """A config key: its dotted name within its section, what it takes, and what it means."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class ConfigSection:
    """A table of the TOML file. kind: of a table that comes in several kinds; else None."""

    name: str
    kind: str | None
    meaning: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        """`[model] kind = "blt"`."""
        return f"[{self.name}]" + ("" if self.kind is None else f' kind = "{self.kind}"')


def sections() -> list[ConfigSection]:
    """All tables of a training config, in the order of `TrainConfig`; nested ones follow the one that holds them."""
    sections: list[ConfigSection] = []
    for name, field in TrainConfig.model_fields.items():
        kinds = _classes_of(field)
        for kind in kinds:
            sections += _sections(name, kind, several=len(kinds) > 1)
    return sections


def _sections(name: str, kind: type[Config], several: bool) -> Iterator[ConfigSection]:
    schema = kind.model_json_schema(mode="validation")
    keys, inner = [], list[ConfigSection]()
    for field, info in kind.model_fields.items():
        classes = _classes_of(info)
        if field != "kind" or not several:
            short = _SHORT.get(f"{name}.{field}")
            text = type_of(schema["properties"][field], schema)
            keys.append(
                Key(field, f"{text}, or {short}" if short else text, default_of(kind, field), field_doc(kind, field))
            )
        for member in classes:
            inner += _sections(f"{name}.{field}", member, len(classes) > 1)
    tag = kind.model_fields["kind"].default if several and "kind" in kind.model_fields else None
    if name == "model":
        presets = ENTROPY_PRESETS if tag == "entropy" else BLT_PRESETS if tag == "blt" else ()
        if presets:
            named = ", ".join(presets)
            keys.insert(
                0, Key("preset", "text", "default: none", f"A named shape, of which keys are changed: {named}.")
            )
    yield ConfigSection(name, tag, " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split()), tuple(keys))
    yield from inner


def _classes_of(field: FieldInfo) -> list[type[Config]]:
    """The Config classes that a field takes, each once; of a seam all its kinds."""
    return _kinds(field.metadata) or _classes(field.annotation)


def _classes(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    kinds = _kinds(getattr(annotation, "__metadata__", ()))  # a seam's base says nothing of its kinds
    return kinds or list(dict.fromkeys(kind for part in get_args(annotation) for kind in _classes(part)))


def _kinds(metadata: Iterable[Any]) -> list[type[Config]]:
    return [kind for item in metadata if isinstance(item, Registry) for kind in item.values()]


def keys_text(width: int = 100) -> str:
    """The reference as `blt train --keys` prints it."""
    lines = ["Every key of a training config; on the command line: section.key=value"]
    for section in sections():
        lines += [
            "",
            section.title,
            *textwrap.wrap(section.meaning, width, initial_indent="  ", subsequent_indent="  "),
        ]
        for key in section.keys:
            lines.append(f"  {key.name} ({key.type}; {key.default})")
            lines += textwrap.wrap(key.meaning, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def keys_page() -> str:
    """The reference as docs/configuration.md holds it."""
    lines = [
        "# Configuration",
        "",
        "Every key of a training config (`blt train C.toml section.key=value`). This page is made by "
        "`python scripts/configuration.py`",
        "from the classes themselves; `blt train --keys` prints the same, and `blt train --schema > blt.schema.json` "
        "writes a JSON",
        "schema that editors complete and check with: put `#:schema ./blt.schema.json` on the first line of a config.",
    ]
    for section in sections():
        lines += ["", f"## `{section.title}`", "", section.meaning, "", "| key | takes | default | meaning |"]
        lines.append("|---|---|---|---|")
        for key in section.keys:
            default = key.default.removeprefix("default: ").replace("|", "\\|")
            cells = (f"`{key.name}`", key.type.replace("|", "\\|"), f"`{default}`", key.meaning.replace("|", "\\|"))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """A JSON schema of a training config as it stands in a file: with presets, short forms and meanings.

    What a preset or `trainer.init` fills in is not required of the file. `parse` stays the judge: the schema knows
    single keys, not what goes together.
    """
    schema: dict[str, Any] = TrainConfig.model_json_schema(mode="validation")
    _describe(schema, TrainConfig, schema["$defs"], set())
    for node in (schema, *schema["$defs"].values()):
        node.pop("required", None)
    models = schema["properties"]["model"]
    models.pop("properties", None)
    models.pop("discriminator", None)
    for name in ("BltConfig", "EntropyConfig", "BoundaryConfig", "CnnConfig", "TokenConfig"):
        schema["$defs"][name]["properties"]["preset"] = {"type": "string", "description": "A named shape."}
    schema["$defs"]["TrainerSection"]["required"] = ["max_steps"]
    for section, key in (("PatchingSection", "rule"), ("OptimSection", "schedule"), ("DataConfig", "sources")):
        node = schema["$defs"][section]["properties"][key]
        items = node.get("items")
        if items is not None:
            node["items"] = {"anyOf": [{"type": "string"}, items]}
        described = {"description": node.pop("description", "")}
        short = [{"type": "string"}, schema["$defs"][section]["properties"][key]]
        schema["$defs"][section]["properties"][key] = described | {"anyOf": short}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "bltkit training config"} | schema


def schema_text() -> str:
    """`schema` as `blt train --schema` prints it."""
    return json.dumps(schema(), indent=2)


def _describe(node: dict[str, Any], kind: type[Config], definitions: dict[str, Any], done: set[type[Config]]) -> None:
    """Add the meaning of every field to the schema of a class and of those inside it."""
    done.add(kind)
    for field, info in kind.model_fields.items():
        if meaning := field_doc(kind, field):
            node["properties"][field]["description"] = meaning
        for member in _classes_of(info):
            if member not in done:
                _describe(definitions[member.__name__], member, definitions, done)
