"""The ledger of a model: per byte of text and by module, what it computes and what decoding has to read.

target (what is named) -> count (rows from shapes; `passes`: of a decoding strategy) -> row (the value and its tables)
-> drawing (pictures).
"""

from bltkit.model.flops import ScorerConfig
from bltkit.study.flops.count import BYTES_PER_TOKEN, PATCH_BYTES, ledger, token_ledger
from bltkit.study.flops.passes import PassRates, expected
from bltkit.study.flops.row import Ledger, Row, SideBySide
from bltkit.study.flops.target import ASSUMED_SCORER, Decoding, ledger_of, scorer_named

__all__ = [
    "ASSUMED_SCORER",
    "BYTES_PER_TOKEN",
    "PATCH_BYTES",
    "Decoding",
    "Ledger",
    "PassRates",
    "Row",
    "ScorerConfig",
    "SideBySide",
    "expected",
    "ledger",
    "ledger_of",
    "scorer_named",
    "token_ledger",
]
