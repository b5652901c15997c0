"""Sessions of any test on the native backend: `pytest --backend native`, or the context `natively`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import pytest
from torch import nn

from bltkit.generate import Session
from bltkit.native import Unavailable, accelerated, backend_of
from bltkit.native.library import kernels


def needs_library() -> None:
    """Skips the test where there is no compiler."""
    try:
        kernels()
    except Unavailable as error:
        pytest.skip(str(error))


@contextmanager
def natively() -> Iterator[None]:
    """Sessions that start in here run a native copy of their model and scorer."""
    start = Session.start.__func__  # type: ignore[attr-defined]

    @lru_cache(maxsize=64)
    def native(module: Any) -> Any:
        if backend_of(module) != "eager":  # of a session that reads its text again
            return module
        copied, reasons = accelerated(module)
        assert not reasons, reasons
        return copied

    def start_natively(cls: type[Session], model: Any, scorer: Any, *rest: Any, **named: Any) -> Session:
        module = native(scorer) if isinstance(scorer, nn.Module) else scorer
        return start(cls, native(model), module, *rest, **named)

    with patch.object(Session, "start", classmethod(start_natively)):
        yield
