"""Progress of a download: a class for the hub's library to make its bars of, which tells a function in their place."""

import threading
from collections.abc import Callable
from typing import Any

Tell = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


def bars_for(tell: Tell) -> type:
    """A class of bars that show nothing and tell the bytes of a download."""
    from tqdm.auto import tqdm

    lock = threading.Lock()

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # The library grows the total of this one bar as it learns the files' sizes.
            self.counts = options.get("unit") == "B" and "incomplete total" in str(options.get("desc"))
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts:
                with lock:  # files come in several threads
                    self.n += int(n or 0)
                    tell(int(self.n), max(int(self.n), int(self.total or 0)))
            return None

    return Bar
