"""Evaluation: bits per byte, and the health of a checkpoint. Takes `Bundle` values; nothing here changes a model."""

from bltkit.eval.finding import Finding
from bltkit.eval.health import Health, check, default_documents
from bltkit.eval.score import Score, score

__all__ = ["Finding", "Health", "Score", "check", "default_documents", "score"]
