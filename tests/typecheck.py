"""The type checker that jaxtyping's import hook applies: beartype, except where it has no answer (`Self` in a function)."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, or the function as it is where the annotation is `Self`."""
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
