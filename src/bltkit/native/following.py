"""A native copy of modules whose weights may change between calls: laid out again after a change."""

from collections.abc import Iterable
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from bltkit.native.backend import on_backend


class FollowingCopy:
    """`on_backend` for weights that somebody trains or replaces. Copies and pickles are empty."""

    def __init__(self) -> None:
        self._state: object = None
        self._modules: tuple[Any, Any] = (None, None)

    def __reduce__(self) -> Any:
        return FollowingCopy, ()  # the copy's addresses are of this process and these weights

    def modules(self, backend: str, model: nn.Module, scorer: nn.Module | None) -> tuple[Any, Any]:
        """Model and scorer as `backend` runs them, with the numbers that they hold now.

        A check reads all weights once. Raises as `on_backend` does.
        """
        if backend == "eager":
            return model, scorer
        parts = [part for part in (model, scorer) if part is not None]
        state = backend, _state(tensor for part in parts for tensor in (*part.parameters(), *part.buffers()))
        if state != self._state:
            self._modules = on_backend(backend, model, scorer)
            self._state = state
        return self._modules


def _state(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """Place and checksum of each tensor: writing through `.data` leaves no trace but in the contents."""
    described = []
    for tensor in tensors:
        content = crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        described.append((tensor.data_ptr(), str(tensor.dtype), str(tensor.device), content))
    return described
