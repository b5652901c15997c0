"""The health of a checkpoint: sound files, and the known ways to go wrong silently. Nothing here changes a model."""

from bltkit.diagnostics.finding import Finding
from bltkit.diagnostics.health import Health, check, default_documents

__all__ = ["Finding", "Health", "check", "default_documents"]
