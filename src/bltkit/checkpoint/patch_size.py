"""The mean size of a checkpoint's patches, as far as its rule or its record tells it: what costs are counted with."""

import math

from bltkit.checkpoint.bundle import Bundle


def mean_patch_bytes(bundle: Bundle) -> tuple[float, str] | None:
    """Mean bytes per patch, and where it is known from: the rule alone, else training or calibration; else None."""
    if bundle.rule is not None and bundle.rule.mean_patch_bytes is not None:
        return bundle.rule.mean_patch_bytes, f"rule {bundle.rule}"
    for key, source in (("mean_patch_bytes", "measured in training"), ("calibrated_patch_bytes", "calibrated")):
        value = bundle.record.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf:
            return float(value), source
    return None
