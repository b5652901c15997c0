"""Plain files: each file is one document, its bytes as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bltkit.data.sources.paths import Paths, expand
from bltkit.data.sources.source import Document, SourceConfig


class TextSource(SourceConfig):
    """Files named by paths or globs. Any file is taken as it is; nothing has to be text."""

    kind: Literal["text"] = "text"
    paths: Paths

    @property
    def label(self) -> str:
        return ", ".join(self.paths)

    def documents(self) -> Iterator[Document]:
        for path in expand(self.paths):
            yield Document(str(path), path.read_bytes())
