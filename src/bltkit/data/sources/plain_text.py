"""Plain files: each file is one document, its bytes as they stand; nothing has to be text (see also `binary`).

Nothing is unpacked or removed either: a byte order mark and the bytes of a compressed file are data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bltkit.data.sources.paths import FileSource, expand
from bltkit.data.sources.source import Document, Faults


class TextSource(FileSource):
    """Files named by paths or globs. Any file is taken as it is; nothing has to be text."""

    kind: Literal["text"] = "text"

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        for path in expand(self.paths):
            try:
                data = path.read_bytes()
            except OSError as error:
                reason = error.strerror or str(error)
                self.pass_over(ValueError(f"{path}: cannot be read ({reason})"), faults)
                continue
            yield Document(str(path), data)
