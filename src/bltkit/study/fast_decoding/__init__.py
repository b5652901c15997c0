"""The study `fast-decoding`: what drafting, verification and block diffusion gain in seconds, and what they cost."""

from bltkit.study.fast_decoding.measure import FastDecodingPlan, run
from bltkit.study.fast_decoding.report import TABLE, table, write_report

__all__ = ["TABLE", "FastDecodingPlan", "run", "table", "write_report"]
