"""The package as the parity tests see it: directories in, logits out. The one place to change when its
interface does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bltkit.checkpoint.hf_config import write_config
from bltkit.checkpoint.names import blt_parts
from bltkit.model import Blt, EntropyConfig
from bltkit.patching import ThresholdRule


def _loaded(directory: Path) -> Any:
    """A bundle: `.model`, `.scorer` (the entropy model) and `.rule`."""
    from bltkit.checkpoint import load_bundle

    return load_bundle(directory)


def load_hf_dir(directory: Path) -> Callable[[Sequence[int]], Tensor]:
    """The model of a published directory as a function of one row: ids [T] -> logits [T, 260] in fp32."""
    loaded = _loaded(directory)

    @torch.no_grad()
    def logits(ids: Sequence[int]) -> Tensor:
        from bltkit.patching import patch

        row = torch.tensor([list(ids)])
        # Such a directory knows no documents: a BOS inside a row opens a patch only where the rule says so.
        patches = patch(loaded.rule, row, loaded.scorer.scores(row), documents=False)
        found: Tensor = loaded.model(row, patches)[0]
        return found

    return logits


def entropies_hf_dir(directory: Path) -> Callable[[Sequence[int]], Tensor]:
    """The entropy model of a published directory: ids [T] -> entropies [T] in nats, fp32."""
    loaded = _loaded(directory)

    def entropies(ids: Sequence[int]) -> Tensor:
        found: Tensor = loaded.scorer.scores(torch.tensor([list(ids)]))[0]
        return found

    return entropies


def starts_hf_dir(directory: Path) -> Callable[[Sequence[int]], Tensor]:
    """The patches of a published directory: ids [T] -> starts [T+1]."""
    loaded = _loaded(directory)

    def starts(ids: Sequence[int]) -> Tensor:
        from bltkit.patching import patch

        row = torch.tensor([list(ids)])
        return patch(loaded.rule, row, loaded.scorer.scores(row), documents=False).starts[0]

    return starts


def roundtrip(dir_in: Path, dir_out: Path) -> None:
    """Loads a published directory and saves it as a checkpoint of ours."""
    from bltkit.checkpoint import save_bundle

    save_bundle(dir_out, _loaded(dir_in))


def reference_layout(model: Blt) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """The weights and the config of a model as `tests/reference.py` reads them."""
    weights = {}
    for name, weight in model.state_dict().items():
        parts = blt_parts(name, weight.shape)
        pieces = weight.split([part.shape[0] for part in parts])
        weights |= {part.name: piece.numpy() for part, piece in zip(parts, pieces, strict=True)}
    unused = EntropyConfig(width=8, layers=1, heads=1)
    layout = write_config(model.config, unused, ThresholdRule(threshold=1.0))
    own = ("pooling", "pooled_bytes", "encoder_cross_attn", "decoder_cross_attn")
    return weights, layout | {"bltkit": {name: getattr(model.config, name) for name in own}}
