"""Registries: the kinds of a seam, each of them one line `module:Class`.

A seam is a base class that can be extended: a patching rule, a data source, an evaluation task and so on. Its
`Registry` is the only list of its kinds. TOML sections, short forms on the command line, error messages, listings and
contract tests all read it, so a new kind is its own file and its line in the registry. Modules are imported when the
registry is first read, which also keeps base classes free of import cycles.
"""

import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from operator import or_
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from bltkit.config import Config, default_of, example_of, field_doc, nearest, type_of

C = TypeVar("C", bound=Config)


def resolve(target: str) -> Any:
    """Import what `module:attribute` names.

    Raises ValueError where the module or the attribute does not exist; errors inside the module pass through.
    """
    module_name, colon, name = target.partition(":")
    if not colon:
        raise ValueError(f"{target!r} is not 'module:attribute', such as 'bltkit.patching.space:SpaceRule'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{target!r}: there is no module {error.name!r}") from None
    if not hasattr(module, name):
        raise ValueError(f"{target!r}: {module_name} defines no {name!r}{nearest(name, _public(module))}")
    return getattr(module, name)


class Registry(Mapping[str, type[C]], Generic[C]):
    """The kinds of one seam: a read-only mapping from `kind` to class, in the order of its lines.

    As the metadata of `Annotated[Base, registry]` it is a config field that reads `{kind = "...", ...}`.
    """

    def __init__(self, what: str, base: type[C], *targets: str, example: Callable[[Any], str] = example_of) -> None:
        """what: the field's noun, for messages. targets: `module:Class`, one for each kind.

        example: a kind in its short form, for listings.
        """
        self.what, self.base, self.targets, self.example = what, base, targets, example

    @cached_property
    def classes(self) -> Mapping[str, type[C]]:
        """Every class by its kind. Raises ValueError for a line that names no new kind of this seam."""
        classes: dict[str, type[C]] = {}
        for target in self.targets:
            member = resolve(target)
            if not (isinstance(member, type) and issubclass(member, self.base)):
                raise ValueError(f"{self.what} {target!r} is no subclass of {self.base.__name__}")
            if inspect.isabstract(member):
                missing = ", ".join(sorted(member.__abstractmethods__))
                raise ValueError(f"{self.what} {target!r} does not implement {missing}")
            field = member.model_fields.get("kind")
            if field is None or not isinstance(field.default, str):
                raise ValueError(f'{self.what} {target!r} has no name; add the field kind: Literal["..."] = "..."')
            if field.default in classes:
                raise ValueError(f"{self.what} {target!r}: the kind {field.default!r} is taken; choose another name")
            classes[field.default] = member
        return classes

    def __getitem__(self, kind: str) -> type[C]:
        return self.classes[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    # Annotated types that hold a registry are cached by its hash: a registry equals itself alone, and imports nothing.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def with_kind(self, target: str) -> "Registry[C]":
        """This registry with one more line."""
        return Registry(self.what, self.base, *self.targets, target, example=self.example)

    def listing(self) -> str:
        """What `--rule list` and its like print: each kind, its fields, and an example.

        Fields that all kinds have in common stand at the end, once.
        """
        fields = {kind: _fields(member) for kind, member in self.items()}
        common = [text for text in next(iter(fields.values()), []) if all(text in texts for texts in fields.values())]
        lines = [f"{self.what}: KIND or KIND:FIELD=VALUE,FIELD=VALUE"]
        for kind, member in self.items():
            lines += ["", kind, *_wrapped(summary(member), 4)]
            for text in fields[kind]:
                if text not in common:
                    lines += _wrapped(text, 6)
            lines.append(f"    for example {self.example(member)}")
        if common:
            lines += ["", "(each of them)"]
            for text in common:
                lines += _wrapped(text, 6)
        return "\n".join(lines)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members = tuple(self.values())
        # A union of one is that class, which needs no discriminator.
        union: Any = reduce(or_, members)
        return handler.generate_schema(Annotated[union, Field(discriminator="kind")] if len(members) > 1 else union)


def summary(member: Any) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((member.__doc__ or "").partition("\n\n")[0].split())


def _fields(kind: type[Config]) -> list[str]:
    """Every field with its type, its default and its meaning."""
    schema = kind.model_json_schema(mode="validation")
    texts = []
    for name in kind.model_fields:
        if name != "kind":
            text = f"{name}: {type_of(schema['properties'][name], schema)}; {default_of(kind, name)}"
            meaning = field_doc(kind, name)
            texts.append(f"{text}. {meaning}" if meaning else text)
    return texts


def _wrapped(text: str, indent: int) -> list[str]:
    further = " " * (indent if indent == 4 else indent + 2)
    return textwrap.wrap(text, 96, initial_indent=" " * indent, subsequent_indent=further)


def _public(module: Any) -> Sequence[str]:
    return [name for name in vars(module) if not name.startswith("_")]
