"""Evaluation: bits per byte, benchmark tasks and their report. Nothing here changes a model."""

from bltkit.eval.score import Score, score

__all__ = ["Score", "score"]
