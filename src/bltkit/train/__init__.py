"""Training, on one process or many: configuration, objective, optimizer, run directory and the loop."""

import sys
from types import ModuleType
from typing import Any

from bltkit.train.config import TrainConfig
from bltkit.train.learner import build_model
from bltkit.train.metrics import bits_per_byte, read_metrics
from bltkit.train.result import Result
from bltkit.train.trainer import train

__all__ = ["Result", "TrainConfig", "bits_per_byte", "build_model", "read_metrics", "train"]


class _TrainPackage(ModuleType):
    """`bltkit.train` is the function, and this package too: Python binds that name to it at its first import."""

    def __call__(self, *arguments: Any, **options: Any) -> Result:
        return train(*arguments, **options)


sys.modules[__name__].__class__ = _TrainPackage
