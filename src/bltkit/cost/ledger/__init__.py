"""The ledger of a model: per byte of text and by module, what it computes and what decoding has to read.

target (what is named) -> count (rows from shapes; `passes`: of a decoding strategy) -> row (the value and its tables)
-> drawing (pictures).
"""

from bltkit.cost.formulas.operations import ScorerConfig
from bltkit.cost.ledger.count import BYTES_PER_TOKEN, PATCH_BYTES, ledger, token_ledger
from bltkit.cost.ledger.passes import PassRates, expected
from bltkit.cost.ledger.row import Ledger, LedgerRow, SideBySide
from bltkit.cost.ledger.target import ASSUMED_SCORER, Decoding, ledger_of, scorer_named

__all__ = [
    "ASSUMED_SCORER",
    "BYTES_PER_TOKEN",
    "PATCH_BYTES",
    "Decoding",
    "Ledger",
    "LedgerRow",
    "PassRates",
    "ScorerConfig",
    "SideBySide",
    "expected",
    "ledger",
    "ledger_of",
    "scorer_named",
    "token_ledger",
]
