"""Large binary files, cut into documents of a fixed number of bytes, so that memory holds one piece at a time.

The difference to `text`, which also takes any file as it is: there a file is one document, read whole, and its
bytes may be judged as UTF-8; here a file of any size becomes many documents, and nothing is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from bltkit.data.sources.paths import FileSource, expand
from bltkit.data.sources.source import Document, Faults


class BinarySource(FileSource):
    """Files named by paths or globs; `chunk_bytes` is the length of a document, a file's last one is shorter.

    A document has no context before it and EOS after it, also where it is the middle of a file.
    """

    kind: Literal["binary"] = "binary"
    chunk_bytes: int = Field(default=1 << 20, ge=1, le=1 << 30)
    """Length of a document in bytes; a file's last one is shorter."""
    not_utf8: Literal["keep"] = "keep"
    """Binary documents are no text, so nothing is judged."""

    is_text: ClassVar[bool] = False

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        """Documents are named `path@offset`. A file without bytes is one empty document."""
        for path in expand(self.paths):
            offset = 0
            try:
                with path.open("rb") as file:
                    while (chunk := file.read(self.chunk_bytes)) or not offset:
                        yield Document(f"{path}@{offset}", chunk)
                        offset += len(chunk)
                        if not chunk:
                            break
            except OSError as error:
                reason = error.strerror or str(error)
                self.pass_over(ValueError(f"{path}: cannot be read ({reason})"), faults)
