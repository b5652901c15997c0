"""From Arrow batches to documents: one column is the text, others go along. Shared by `parquet` and `hub`.

Notable: the text never becomes a Python string. The column is read as bytes, because files in the wild hold strings
that are no UTF-8, and those are for the source's policy to judge and not a reason to stop here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bltkit.data.sources.records import Metadata, choose_metadata
from bltkit.data.sources.source import Document, Faults, SourceConfig

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
"""Rows decoded at a time: few, because a row may be a whole book."""


class TableSource(SourceConfig):
    """What sources of tables share. `field` is the column of the text (string or binary), with dots through struct
    columns; `metadata` names the columns to carry along, or is "all".
    """

    field: str = "text"
    """Column of the text, with dots through struct columns."""
    metadata: Metadata = ()
    """Columns to carry along, or "all"."""

    def columns(self, schema: pa.Schema, where: str) -> list[str]:
        """The top-level columns that hold the text and the metadata, in the table's order.

        `ValueError` that begins with `where` for a column that is not there, is there twice or cannot be a text.
        """
        wanted = [_text_way(schema, self.field, where)[0]]
        for name in () if self.metadata == "all" else self.metadata:
            way = _way(schema, name)
            if way is None:
                raise ValueError(f"{where}: no column {name!r} for metadata; there are: {_names(schema)}")
            wanted.append(way[0])
        chosen = [name for name in schema.names if self.metadata == "all" or name in wanted]
        if len(chosen) != len(set(chosen)):
            raise ValueError(f"{where}: two columns of one name among {_names(schema)}; rename one")
        return chosen

    def batch_documents(
        self, batch: pa.RecordBatch | pa.Table, where: str, first: int, faults: Faults | None
    ) -> Iterator[Document]:
        """A batch's documents, named `where:row`; `first` is the number of its first row. A null is an empty one, also
        where an object on the way to it is null.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        way = _text_way(batch.schema, self.field, where)
        column = batch.column(way[0])
        for name in way[1:]:
            column = pc.struct_field(column, name)
        texts = column.cast(pa.large_binary()).to_pylist()
        records = self._records(batch, way) if self.metadata else [None] * len(texts)
        for number, (text, record) in enumerate(zip(texts, records, strict=True), start=first):
            name = f"{where}:{number}"
            if isinstance(record, ValueError):
                self.pass_over(ValueError(f"{name}: metadata cannot be decoded ({record}); leave it out"), faults)
                continue
            if record is not None:
                record.setdefault(way[0])  # so that `field` is what it was, and not a way into another column
                record = choose_metadata(record, self.field, self.metadata)
            yield Document(name, text or b"", record)

    def _records(self, batch: pa.RecordBatch | pa.Table, way: list[str]) -> list[dict[str, Any] | ValueError]:
        """Rows as Python values without the text; the error in place of one that has none (a time before year 1, a
        string that is no UTF-8)."""
        names = list(batch.schema.names)
        if len(way) == 1 and (self.metadata == "all" or way[0] not in self.metadata):
            names.remove(way[0])
        others = batch.select(names)

        def decoded(start: int, length: int) -> list[dict[str, Any] | ValueError]:
            try:
                return others.slice(start, length).to_pylist() if names else [{} for _ in range(length)]
            except (ValueError, OverflowError) as error:
                if length > 1:
                    return [row for index in range(length) for row in decoded(start + index, 1)]
                return [ValueError(" ".join(str(error).split())[:200])]

        return decoded(0, batch.num_rows)


def _text_way(schema: pa.Schema, field: str, where: str) -> list[str]:
    """`field` as the way through struct columns. `ValueError` where it is missing or neither text nor bytes."""
    import pyarrow as pa

    way = _way(schema, field)
    if way is None:
        raise ValueError(f"{where}: no column {field!r}; set the source's `field` to one of: {_names(schema)}")
    kind: Any = schema.field(schema.names.index(way[0])).type
    for name in way[1:]:
        kind = kind.field(name).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
        pa.types.is_null,
    )
    if not any(test(plain) for test in tests):
        raise ValueError(f"{where}: column {field!r} is of type {kind}, a string or binary column is wanted")
    return way


def _way(schema: pa.Schema, field: str) -> list[str] | None:
    """The column of that name, or else, cut at its dots, the way through struct columns; None: there is none."""
    import pyarrow as pa

    if field in schema.names:
        return [field]
    way = field.split(".")
    if way[0] not in schema.names:
        return None
    kind: Any = schema.field(schema.names.index(way[0])).type
    for name in way[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return way


def _names(schema: pa.Schema) -> str:
    return ", ".join(schema.names[:8]) or "none"
