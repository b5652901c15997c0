"""The type checker that jaxtyping's import hook applies: beartype, but not where it has no answer (`Self`)."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

# An int is a float where a float is asked for, as for mypy (PEP 484).
_CHECKED = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, or the function as it is where the annotation is `Self`."""
    try:
        return _CHECKED(function)
    except BeartypeDecorHintPep673Exception:
        return function
