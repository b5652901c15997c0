"""The checkpoint directory: a trained BLT is a Hugging Face BLT (config.json + model.safetensors) plus bltkit.json.

`save_bundle` and `load_bundle` are the only file I/O of weights. What Hugging Face's format cannot say is written
under another model_type, so that transformers refuses it instead of computing something else.
"""

from bltkit.checkpoint.atomic import atomic_directory, write_atomic
from bltkit.checkpoint.bundle import (
    Skeleton,
    build_modules,
    load_bundle,
    save_bundle,
    skeleton,
    store_rule,
    write_bundle,
)
from bltkit.checkpoint.held import Bundle
from bltkit.checkpoint.intact import damages, listed_files
from bltkit.checkpoint.locate import embedded_models, resolve_model
from bltkit.checkpoint.manifest import MANIFEST, ScorerModule, scorer_hash
from bltkit.checkpoint.names import stored_parts
from bltkit.checkpoint.placement import DeviceMap
from bltkit.checkpoint.sealing import unreadable, warn_unreadable
from bltkit.checkpoint.token_checkpoint import (
    TokenBundle,
    is_token_model,
    load_token_model,
    token_config,
    write_token_model,
    write_vocabulary,
)

__all__ = [
    "MANIFEST",
    "Bundle",
    "DeviceMap",
    "ScorerModule",
    "Skeleton",
    "TokenBundle",
    "atomic_directory",
    "build_modules",
    "damages",
    "embedded_models",
    "is_token_model",
    "listed_files",
    "load_bundle",
    "load_token_model",
    "resolve_model",
    "save_bundle",
    "scorer_hash",
    "skeleton",
    "store_rule",
    "stored_parts",
    "token_config",
    "unreadable",
    "warn_unreadable",
    "write_atomic",
    "write_bundle",
    "write_token_model",
    "write_vocabulary",
]
