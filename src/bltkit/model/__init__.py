"""Architecture only: the paper's figure as modules. Nothing here knows rules, data, training or generation."""

from bltkit.model.blt import Blt, document_of
from bltkit.model.config import (
    BltConfig,
    BoundaryConfig,
    CnnConfig,
    EntropyConfig,
    NgramConfig,
    Quirks,
    SavedTokenizer,
    StackConfig,
    TokenConfig,
    TrainedTokenizer,
)
from bltkit.model.entropy import BoundaryModel, EntropyModel, Scorer
from bltkit.model.learned_boundaries import RoutedBlt
from bltkit.model.presets import BLT_PRESETS, ENTROPY_PRESETS, RELEASED_THRESHOLD, blt_preset, entropy_preset
from bltkit.model.token_llama import TokenLlama
from bltkit.model.two_id_scorers import CnnEntropy, EntropyTable

__all__ = [
    "BLT_PRESETS",
    "ENTROPY_PRESETS",
    "RELEASED_THRESHOLD",
    "Blt",
    "BltConfig",
    "BoundaryConfig",
    "BoundaryModel",
    "CnnConfig",
    "CnnEntropy",
    "EntropyConfig",
    "EntropyModel",
    "EntropyTable",
    "NgramConfig",
    "Quirks",
    "RoutedBlt",
    "SavedTokenizer",
    "Scorer",
    "StackConfig",
    "TokenConfig",
    "TokenLlama",
    "TrainedTokenizer",
    "blt_preset",
    "document_of",
    "entropy_preset",
]
