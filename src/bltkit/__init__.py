"""bltkit: a complete, practical Byte Latent Transformer (BLT) system.

    import bltkit
    lm = bltkit.load("bltkit:tiny")
    print(lm.generate("def main", temperature=0).text)

The names below are imported when they are first used, so that `import bltkit` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bltkit.api import ByteLM, load
    from bltkit.convert import convert
    from bltkit.eval.benchmark_run import evaluate
    from bltkit.generate.options import Prompt
    from bltkit.generate.request import Generation
    from bltkit.hf.accelerate import accelerate
    from bltkit.patches import Patches
    from bltkit.share import pull, push
    from bltkit.train import TrainConfig, train

__version__ = "0.1.0"
__all__ = [
    "ByteLM",
    "Generation",
    "Patches",
    "Prompt",
    "TrainConfig",
    "accelerate",
    "convert",
    "evaluate",
    "load",
    "pull",
    "push",
    "train",
]

_HOMES = {
    "ByteLM": "bltkit.api",
    "Generation": "bltkit.generate.request",
    "Patches": "bltkit.patches",
    "Prompt": "bltkit.generate.options",
    "TrainConfig": "bltkit.train",
    "accelerate": "bltkit.hf.accelerate",
    "convert": "bltkit.convert",
    "evaluate": "bltkit.eval.benchmark_run",
    "load": "bltkit.api",
    "pull": "bltkit.share",
    "push": "bltkit.share",
    "train": "bltkit.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bltkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What interpreters complete: the public names, imported or not."""
    return sorted({*globals(), *__all__})
