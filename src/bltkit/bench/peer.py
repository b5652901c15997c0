"""The peer: `transformers`' BLT with the same weights, by way of a checkpoint directory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.bench.subject import Subject
from bltkit.checkpoint import Bundle, save_bundle

PEERS = ("transformers",)

TOLERANCE = 1e-3
"""Of the largest logit: what fp32 sums in another order may differ by in a deep model."""


@dataclass(frozen=True)
class Peer:
    """`BltForCausalLM`, as `from_pretrained` gives it."""

    name: str
    model: Any

    @torch.inference_mode()
    def logits(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """A full forward pass from bytes. Its cached one computes something else (spec 11.2)."""
        logits: Tensor = self.model(ids, use_cache=False).logits
        return logits


@contextmanager
def peer_of(name: str | None, subject: Subject) -> Iterator[Peer | None]:
    """The peer called `name` with the subject's weights; None for no name.

    Raises ValueError for an unknown peer, where it is not installed, or where it cannot say what the model is.
    """
    if name is None:
        yield None
        return
    if name not in PEERS:
        raise ValueError(f"no peer {name!r}; known: {', '.join(PEERS)}")
    try:
        import transformers
    except ImportError:
        raise ValueError("peer 'transformers' is not installed: pip install 'bltkit[peer]'") from None
    with tempfile.TemporaryDirectory() as folder:
        directory = f"{folder}/model"
        save_bundle(directory, Bundle(subject.model, subject.scorer, subject.rule))
        with _quiet(transformers):
            try:
                model, report = transformers.BltForCausalLM.from_pretrained(
                    directory, output_loading_info=True, dtype=torch.float32
                )
            except Exception as error:  # a directory of model_type bltkit is refused in one of many ways
                raise ValueError(f"model {subject.name!r} cannot be said in transformers' format: {error}") from None
        wrong = [kind for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]]
        if wrong:
            raise ValueError(f"transformers does not take the weights of {subject.name!r}: {report[wrong[0]]}")
        yield Peer(f"transformers {transformers.__version__}", model.eval().to(subject.device))


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars meanwhile."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def compared(ours: Float[Tensor, "... V"], peer: Float[Tensor, "... V"]) -> float:
    """The largest difference. Raises RuntimeError where it is no rounding: such a benchmark would be worthless."""
    differences = (ours - peer).abs().flatten(0, -2).amax(-1)
    wrong = ~(differences <= TOLERANCE * peer.abs().max())  # NaN is wrong as well
    if wrong.any():
        worst, first = float(differences.max()), int(wrong.nonzero()[0])
        raise RuntimeError(f"ours and the peer disagree by up to {worst:.2g}, first in position {first}")
    return float(differences.max())
