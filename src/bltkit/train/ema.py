"""The moving average of a run's weights: smoother than the last step's, and what is exported where it is kept.

Kept in fp32 whatever the weights are in (in bf16 a small step of the average would round to none), placed like the
weights (FSDP2's shards, own rows of the tables), and part of the training state, so that a run resumes it exactly.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """E <- d E + (1 - d) W after every update, with d = min(decay, (1 + u) / (10 + u)) at update u (from 0).

    The smaller first decays let the average forget the initial weights; they are a function of the step alone.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        """Begins with the weights as they are. decay: in (0, 1)."""
        self.decay = decay
        self._weights = dict(weights)
        self._averages = {name: weight.detach().float().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self._averages.items():
            average.lerp_(self._weights[name].detach().float(), share)

    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves by the weights' names, no copies: a checkpoint can be read into them."""
        return self._averages

    @torch.no_grad()
    def begin(self, names: Iterable[str]) -> None:
        """Make the averages of `names` the weights as they are: where a checkpoint holds none of them."""
        for name in names:
            self._averages[name].copy_(self._weights[name].detach())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in the weights' place, until the block ends."""
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        with torch.no_grad():
            for name, average in self._averages.items():
                self._weights[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(kept[name])
