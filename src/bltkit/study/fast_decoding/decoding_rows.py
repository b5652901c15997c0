"""Rows of the study `fast-decoding` from its turns: cost and quality of each setting, with intervals.

Every number is a quotient of sums over prompts (bytes over seconds, bits over bytes, ...), and its interval the 95 %
of a bootstrap over prompts: long outputs count for their length, and two settings are compared on the same prompts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bltkit.bench import repeated_share
from bltkit.generate import Stats
from bltkit.study.fast_decoding.decoding_settings import AR, Setting
from bltkit.study.fast_decoding.passages import Passages
from bltkit.study.fast_decoding.quality import agreement, is_utf8, stays_python
from bltkit.study.stats import NOTHING, QuotientEstimate, Resampling, Values

COUNTED = (
    "bytes",
    "seconds",
    "decoder_passes",
    "encoder_passes",
    "global_passes",
    "entropy_passes",
    "drafted",
    "accepted",
    "weight_gb_read",
    "kv_gb_read",
    "paper_gb",
)
"""Fields of the engine's ledger that a turn keeps."""

_QUOTIENTS = {
    "bytes_per_second": ("bytes", "seconds"),
    "decoder_passes_per_byte": ("decoder_passes", "bytes"),
    "encoder_passes_per_byte": ("encoder_passes", "bytes"),
    "global_passes_per_byte": ("global_passes", "bytes"),
    "entropy_passes_per_byte": ("entropy_passes", "bytes"),
    "bytes_per_round": ("bytes", "rounds"),
    "acceptance": ("accepted", "drafted"),
    "weight_gb_read": ("weight_gb_read", "runs"),
    "kv_gb_read": ("kv_gb_read", "runs"),
    "paper_gb": ("paper_gb", "runs"),
    "agreement": ("equal", "compared"),
    "common_prefix": ("prefix", "runs"),
    "repeated_share": ("repeated", "bytes"),
    "valid_utf8": ("utf8", "runs"),
    "valid_python": ("python", "python_judged"),
    "bits_per_byte": ("bits", "bytes"),
}
_SHARES = ("acceptance", "agreement", "repeated_share", "valid_utf8", "valid_python")
"""Quotients between 0 and 1."""
_RATIOS = {"against_ar": ("bytes", "seconds"), "bits_against_ar": ("bits", "bytes")}
_SAVINGS = {"time_saved": "seconds", "gb_saved": "gb_read", "paper_gb_saved": "paper_gb"}


def continuation(data: bytes, stats: Stats, rounds: int, nats: float) -> dict[str, Any]:
    """Record of one continuation in a turn.

    rounds: of proposing and reading. nats: -ln p of the bytes under the model's autoregressive pass.
    """
    ledger = {name: getattr(stats, name) for name in COUNTED}
    return {"bytes_hex": data.hex(), "rounds": rounds, "nats": nats, "ledger": ledger}


def setting_rows(
    text: Passages, turns: Sequence[Mapping[str, Any]], settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """A row for each setting, of turns that hold `ar` and all of them for all prompts of a text.

    bytes, seconds: of all continuations, seconds inside the engine.
    against_ar: bytes per second over those of `ar`. time_saved, gb_saved, paper_gb_saved: 1 - cost of a byte / its cost
        by `ar`, in seconds, in what was read (weights, tables' rows, cached keys and values, entropy model included),
        and by the paper's formula.
    ..._passes_per_byte, bytes_per_round; acceptance: accepted / drafted, None where nothing is verified.
    weight_gb_read, kv_gb_read, paper_gb: mean of a continuation.
    agreement: share of positions with the byte that `ar` has there for the same prompt and seed, of the longer of the
        two; common_prefix: mean length of the prefix that both share.
    repeated_share: share of bytes inside a 16-gram that occurs again in the same continuation.
    valid_utf8: share of continuations (`is_utf8`). valid_python: share of the python_judged ones of which it can be
        said (`stays_python`); None for text that is not code.
    bits_per_byte: of the generated text, under the model's autoregressive pass at temperature 1; bits_against_ar: over
        those of the text that `ar` generates.
    intervals: low and high of each of them that has an interval: none from one prompt, nor without spread.
    """
    import pandas as pd

    lines = [
        {"setting": name, "prompt": turn["prompt"]}
        | _counts(text, turn["prompt"], made, bytes.fromhex(turn["made"][AR]["bytes_hex"]))
        for turn in turns
        for name, made in turn["made"].items()
    ]
    sums = pd.DataFrame(lines).groupby(["setting", "prompt"]).sum()
    resampling = Resampling(sums.index.get_level_values("prompt").nunique())
    by_setting = {
        name: {key: column.to_numpy(np.float64) for key, column in sums.loc[name].items()}
        for name in sums.index.unique("setting")
    }
    return [_row(setting, by_setting[setting.name], by_setting[AR], resampling, len(turns)) for setting in settings]


def heldout_row(nats: Sequence[float], num_bytes: Sequence[int]) -> dict[str, Any]:
    """How well a model predicts the text's own continuations of its prompts."""
    bits, sizes = np.asarray(nats, dtype=np.float64) / math.log(2), np.asarray(num_bytes, dtype=np.float64)
    estimate = Resampling(len(bits)).quotient(bits, sizes)
    return {
        "bytes": sum(num_bytes),
        "pieces": len(num_bytes),
        "bits_per_byte": estimate.value,
        "intervals": {"bits_per_byte": estimate.interval},
    }


def _counts(text: Passages, prompt: int, made: Mapping[str, Any], ar: bytes) -> dict[str, float]:
    """Terms of all quotients for one continuation."""
    data, ledger = bytes.fromhex(made["bytes_hex"]), made["ledger"]
    equal, prefix = agreement(data, ar)
    python = stays_python(text.passages[prompt].prompt, data) if text.is_code else None
    return {name: ledger[name] for name in COUNTED} | {
        "runs": 1,
        "rounds": made["rounds"],
        "bits": made["nats"] / math.log(2),
        # Two empty texts agree.
        "equal": equal if data or ar else 1,
        "compared": max(len(data), len(ar), 1),
        "prefix": prefix,
        "repeated": repeated_share(data) * len(data),
        "utf8": is_utf8(data),
        "python": python is True,
        "python_judged": python is not None,
        "gb_read": ledger["weight_gb_read"] + ledger["kv_gb_read"],
    }


def _row(
    setting: Setting, sums: Mapping[str, Values], ar: Mapping[str, Values], resampling: Resampling, runs: int
) -> dict[str, Any]:
    estimates = {
        name: (resampling.share if name in _SHARES else resampling.quotient)(sums[above], sums[below])
        for name, (above, below) in _QUOTIENTS.items()
    }
    for name, (above, below) in _RATIOS.items():
        estimates[name] = resampling.ratio(sums[above], sums[below], ar[above], ar[below])
    for name, cost in _SAVINGS.items():
        estimates[name] = resampling.saving(sums[cost], sums["bytes"], ar[cost], ar["bytes"])
    if not setting.strategy.exact:
        estimates["acceptance"] = NOTHING
    if setting.name == AR:
        estimates |= dict.fromkeys(_SAVINGS, QuotientEstimate(0.0))
        estimates |= dict.fromkeys((*_RATIOS, "agreement"), QuotientEstimate(1.0))
    return {
        "setting": setting.name,
        "strategy": setting.fields,
        "runs": runs,
        "bytes": int(sums["bytes"].sum()),
        "seconds": float(sums["seconds"].sum()),
        "python_judged": int(sums["python_judged"].sum()),
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: estimate.interval for name, estimate in estimates.items() if estimate.interval is not None},
    }
