"""A short string that a regular expression matches, from its syntax tree: a hint for the search of completions."""

import re
from collections.abc import Callable, Sequence

# The standard library has no public parser of its expressions.
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any


def shortest_match(pattern: str) -> str | None:
    """A short match of `pattern`, with as few characters as alternatives and repetitions allow.

    None where Python cannot parse it or it looks around or back. A hint: the caller tests it, since the syntaxes of
    Python and of the grammar's library differ at the edges.
    """
    try:
        return _of_sequence(parser.parse(pattern))
    except (re.error, RecursionError, OverflowError, _Unknown):
        return None


class _Unknown(Exception):
    """The expression has a part that no string can be told for."""


def _of_sequence(items: Any) -> str:
    """Of pairs of a kind and its argument; the parser's own sequence type is no `Iterable`."""
    return "".join(_of_item(kind, argument) for kind, argument in items)


def _of_item(kind: Any, argument: Any) -> str:
    if kind is ops.LITERAL:
        return chr(argument)
    if kind is ops.ANY:
        return "a"
    if kind is ops.IN:
        return _of_class(argument)
    if kind is ops.BRANCH:
        return min((_of_sequence(branch) for branch in argument[1]), key=len)
    if kind in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
        return "" if argument[0] == 0 else _of_sequence(argument[2]) * min(argument[0], 10_000)
    if kind is ops.SUBPATTERN:
        return _of_sequence(argument[3])
    if kind is ops.ATOMIC_GROUP:
        return _of_sequence(argument)
    if kind is ops.AT:
        return ""
    if kind is ops.NOT_LITERAL:
        return "b" if argument == ord("a") else "a"
    raise _Unknown


def _of_class(members: Sequence[tuple[Any, Any]]) -> str:
    """A character of a class; of a negated one a printable character."""
    negated = bool(members) and members[0][0] is ops.NEGATE
    listed = [argument[0] if kind is ops.RANGE else argument for kind, argument in members if kind in _CODES]
    for code in (*map(ord, "a0A _-"), *range(33, 127), *([] if negated else listed)):
        if any(_is_member(chr(code), kind, argument) for kind, argument in members[negated:]) != negated:
            return chr(code)
    raise _Unknown


_CODES = (ops.LITERAL, ops.RANGE)
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    ops.CATEGORY_DIGIT: str.isdigit,
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_WORD: lambda character: character.isalnum() or character == "_",
    ops.CATEGORY_NOT_DIGIT: lambda character: not character.isdigit(),
    ops.CATEGORY_NOT_SPACE: lambda character: not character.isspace(),
    ops.CATEGORY_NOT_WORD: lambda character: not (character.isalnum() or character == "_"),
}


def _is_member(character: str, kind: Any, argument: Any) -> bool:
    if kind is ops.LITERAL:
        return ord(character) == argument
    if kind is ops.RANGE:
        return bool(argument[0] <= ord(character) <= argument[1])
    return _CATEGORIES[argument](character)
