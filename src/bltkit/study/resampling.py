"""Names of `stats.py` for studies that are not ported yet."""

from bltkit.study.stats import NOTHING, RESAMPLES, QuotientEstimate, Resampling, Values

__all__ = ["NOTHING", "RESAMPLES", "QuotientEstimate", "Resampling", "Values"]
