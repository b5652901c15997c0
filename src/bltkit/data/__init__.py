"""Data: sources of documents, the corpus, packing into rows, and the loader whose position is a value.

Sees bytes and ids, never a model.
"""

from bltkit.data.batch import IGNORE, Batch, Waste
from bltkit.data.corpus import Corpus, DataConfig, SourceStats
from bltkit.data.loader import Loader
from bltkit.data.sources import Document, Source, SourceConfig, parse_source, read_documents, read_texts
from bltkit.data.token_batches import TokenBatch, TokenRows
from bltkit.data.validation import validation_batches

__all__ = [
    "IGNORE",
    "Batch",
    "Corpus",
    "DataConfig",
    "Document",
    "Loader",
    "Source",
    "SourceConfig",
    "SourceStats",
    "TokenBatch",
    "TokenRows",
    "Waste",
    "parse_source",
    "read_documents",
    "read_texts",
    "validation_batches",
]
