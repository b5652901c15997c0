"""Checkpoints in other layouts: Meta's (two of them), Hugging Face's and ours, converted into one another bit for bit.

A file for each layout; what they share is a `Source`, a checkpoint that was checked and whose tensors lie in their
files' memory maps, and a writer that streams them.
"""

import sys
from types import ModuleType
from typing import Any

from bltkit.convert.job import TARGETS, Conversion, convert

__all__ = ["TARGETS", "Conversion", "convert"]


class _ConvertPackage(ModuleType):
    """`bltkit.convert` is the function, and this package too: Python binds that name to it at its first import."""

    def __call__(self, *arguments: Any, **options: Any) -> Conversion:
        return convert(*arguments, **options)


sys.modules[__name__].__class__ = _ConvertPackage
