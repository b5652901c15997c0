"""Tables in columns: Parquet (.parquet) and Arrow files and streams (.arrow, .feather); one column is the text.

Read batch by batch: memory holds one batch and what the file's own layout makes a reader hold (a Parquet column
chunk, an Arrow record batch), not the file. A file that breaks in the middle keeps what was read of it when `broken`
passes over it. Notable: the format is told by a file's first bytes, not by its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bltkit.data.sources.columns import BATCH_ROWS, TableSource
from bltkit.data.sources.paths import FileSource, expand
from bltkit.data.sources.source import Document, Faults
from bltkit.files import BrokenFile

if TYPE_CHECKING:
    import pyarrow as pa

_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"  # Arrow columnar format, "IPC streaming format": the end mark


class ParquetSource(FileSource, TableSource):
    """Rows of .parquet, .arrow and .feather files."""

    kind: Literal["parquet"] = "parquet"

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        """Documents are named `path:row`, rows counted from 1."""
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError:
            raise ValueError("parquet and arrow files need pyarrow: pip install 'bltkit[data]'") from None
        for path in expand(self.paths):
            row = 1
            with closing(_batches(path, self._choose(path))) as batches:
                try:
                    for batch in batches:
                        yield from self.batch_documents(batch, str(path), row, faults)
                        row += batch.num_rows
                except BrokenFile as error:
                    self.pass_over(error, faults)

    def _choose(self, path: Path) -> _Choose:
        def choose(schema: pa.Schema) -> list[str]:
            try:
                return self.columns(schema, str(path))
            except ValueError as error:
                raise BrokenFile(str(error)) from None

        return choose


_Choose = Callable[["pa.Schema"], list[str]]


def _batches(path: Path, choose: _Choose) -> Generator[pa.RecordBatch, None, None]:
    """The chosen columns in batches of few rows. What pyarrow raises becomes one line that names the file."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            match magic:
                case b"PAR1":
                    yield from _parquet(file, choose)
                case b"ARRO":
                    yield from _arrow_file(file, choose)
                case b"\xff\xff\xff\xff":
                    yield from _arrow_stream(file, choose)
                case b"FEA1":
                    raise ValueError("Feather version 1; write it again with pyarrow.feather")
                case _:
                    raise ValueError("neither Parquet nor Arrow" if magic else "an empty file")
    except BrokenFile:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenFile(f"{path}: cannot be read ({reason}); fetch it again or repair it") from None


def _parquet(file: BufferedReader, choose: _Choose) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    # Buffered and not pre-buffered: a row group is not held in memory as a whole.
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as table:
        columns = choose(table.schema_arrow)
        for group in range(table.num_row_groups):  # one by one, so that damage in one does not take those before it
            yield from table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


def _arrow_file(file: BufferedReader, choose: _Choose) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    schema = pa.ipc.open_file(file).schema
    table = pa.ipc.open_file(file, options=_only(schema, choose(schema)))
    for index in range(table.num_record_batches):
        yield from _slices(table.get_batch(index))


def _arrow_stream(file: BufferedReader, choose: _Choose) -> Iterator[pa.RecordBatch]:
    """What the library `datasets` writes. It has no index, so a cut between two batches shows only in the end mark."""
    import pyarrow as pa

    schema = pa.ipc.open_stream(file).schema
    file.seek(0)
    for batch in pa.ipc.open_stream(file, options=_only(schema, choose(schema))):
        yield from _slices(batch)
    file.seek(-len(_STREAM_END), os.SEEK_END)
    if file.read() != _STREAM_END:
        raise ValueError("the stream ends without its end mark, it was cut short")


def _only(schema: pa.Schema, names: list[str]) -> Any:
    import pyarrow as pa

    return pa.ipc.IpcReadOptions(included_fields=[schema.names.index(name) for name in names])


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)
