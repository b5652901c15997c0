"""From turns to rows of the study `fast-decoding`: what each way of decoding took and made, with intervals.

Every number is a quotient of sums over prompts (bytes over seconds, bits over bytes, ...), and its interval the 95 %
of a bootstrap over prompts: long outputs count for their length, and two ways are compared on the same prompts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bltkit.generate import Stats
from bltkit.study.fast_decoding.decoding_settings import AR, Setting
from bltkit.study.fast_decoding.passages import Passages
from bltkit.study.fast_decoding.quality import agreement, is_utf8, stays_python
from bltkit.study.resampling import NOTHING, QuotientEstimate, Resampling, Values

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
"""What is taken from the engine's ledger."""


@dataclass(frozen=True)
class MadeText:
    """One continuation."""

    data: bytes
    rounds: int
    """Of proposing and reading."""
    nats: float
    """-ln p of the bytes under the model's autoregressive pass."""
    ledger: Mapping[str, float]

    @classmethod
    def of(cls, data: bytes, stats: Stats, rounds: int, nats: float) -> "MadeText":
        """With the ledger as plain numbers."""
        return cls(data, rounds, nats, {name: getattr(stats, name) for name in COUNTED})


@dataclass(frozen=True)
class Turn:
    """What every way of decoding made of one prompt and seed, side by side."""

    made: Mapping[str, MadeText]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {
            name: {"bytes_hex": one.data.hex(), "rounds": one.rounds, "nats": one.nats, "ledger": dict(one.ledger)}
            for name, one in self.made.items()
        }
        return {"made": found}

    @classmethod
    def of_json(cls, line: Mapping[str, Any]) -> "Turn":
        """The inverse."""
        return cls(
            {
                name: MadeText(bytes.fromhex(one["bytes_hex"]), one["rounds"], one["nats"], one["ledger"])
                for name, one in line["made"].items()
            }
        )


@dataclass(frozen=True)
class TurnGroup:
    """The turns of one model, text and temperature, and the number of the prompt that each continues."""

    text: Passages
    turns: Sequence[Turn]
    prompts: Sequence[int]


def setting_rows(
    group: TurnGroup, settings: Sequence[Setting], repeated_share: Callable[[bytes], float]
) -> list[dict[str, Any]]:
    """A row for each setting. Every turn holds `ar` and all of them.

    bytes, seconds: of all continuations, seconds inside the engine.
    against_ar: times as many bytes per second. time_saved, gb_saved, paper_gb_saved: 1 - cost of a byte / its cost by
        `ar`, in seconds, in what was read (weights, tables' rows, cached keys and values, entropy model included), and
        by the paper's formula.
    ..._passes_per_byte, bytes_per_round; acceptance: accepted / drafted, None where nothing is verified.
    weight_gb_read, kv_gb_read, paper_gb: mean of a continuation.
    agreement: share of positions with the byte that `ar` has there for the same prompt and seed, of the longer of the
        two; common_prefix: bytes until they part, as a mean.
    repeated_share: of the bytes, inside a 16-gram that occurs again in the same continuation.
    valid_utf8: share of continuations (`is_utf8`). valid_python: of those where it can be said (`stays_python`), which
        are python_judged; None for text that is not code.
    bits_per_byte: of the text made, under the model's autoregressive pass at temperature 1; bits_against_ar: times
        those of the text that `ar` makes.
    intervals: of each of them that has one, low and high: none from one prompt, nor where prompts show no spread.
    """
    resampling = Resampling(max(group.prompts) + 1)
    columns = _Columns(group, repeated_share)
    ar = columns.of(AR)
    return [_row(setting, columns.of(setting.name), ar, resampling, len(group.turns)) for setting in settings]


def heldout_row(nats: Sequence[float], num_bytes: Sequence[int]) -> dict[str, Any]:
    """How well a model predicts what the text itself says behind each prompt."""
    bits, sizes = np.asarray(nats, dtype=np.float64) / math.log(2), np.asarray(num_bytes, dtype=np.float64)
    found = Resampling(len(bits)).quotient(bits, sizes)
    return {
        "bytes": sum(num_bytes),
        "pieces": len(num_bytes),
        "bits_per_byte": found.value,
        "intervals": {"bits_per_byte": found.interval},
    }


class _Columns:
    """Sums over the turns of each prompt, by name."""

    def __init__(self, group: TurnGroup, repeated_share: Callable[[bytes], float]) -> None:
        self.group, self.repeated_share = group, repeated_share

    def of(self, name: str) -> dict[str, Values]:
        """Of one way of decoding."""
        lines = [
            self._line(self.group.text.passages[prompt].prompt, turn.made[name], turn.made[AR].data)
            for prompt, turn in zip(self.group.prompts, self.group.turns, strict=True)
        ]
        size = max(self.group.prompts) + 1
        return {key: self._by_prompt([line[key] for line in lines], size) for key in lines[0]}

    def _by_prompt(self, values: Sequence[float], size: int) -> Values:
        found: Values = np.zeros(size)
        np.add.at(found, list(self.group.prompts), values)
        return found

    def _line(self, prompt: bytes, made: MadeText, ar: bytes) -> dict[str, float]:
        equal, prefix = agreement(made.data, ar)
        python = stays_python(prompt, made.data) if self.group.text.is_code else None
        return {name: float(made.ledger[name]) for name in COUNTED} | {
            "runs": 1.0,
            "rounds": float(made.rounds),
            "bits": made.nats / math.log(2),
            # Two empty texts agree.
            "equal": float(equal) if made.data or ar else 1.0,
            "compared": float(max(len(made.data), len(ar), 1)),
            "prefix": float(prefix),
            "repeated": self.repeated_share(made.data) * len(made.data),
            "utf8": float(is_utf8(made.data)),
            "python": float(python is True),
            "python_judged": float(python is not None),
            "gb_read": made.ledger["weight_gb_read"] + made.ledger["kv_gb_read"],
        }


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
_RATIOS = ("against_ar", "bits_against_ar")
_SAVINGS = {"time_saved": "seconds", "gb_saved": "gb_read", "paper_gb_saved": "paper_gb"}


def _row(
    setting: Setting, own: Mapping[str, Values], ar: Mapping[str, Values], resampling: Resampling, runs: int
) -> dict[str, Any]:
    found = {
        name: (resampling.share if name in _SHARES else resampling.quotient)(own[above], own[below])
        for name, (above, below) in _QUOTIENTS.items()
    }
    found["against_ar"] = resampling.ratio(own["bytes"], own["seconds"], ar["bytes"], ar["seconds"])
    found["bits_against_ar"] = resampling.ratio(own["bits"], own["bytes"], ar["bits"], ar["bytes"])
    if not setting.strategy.exact:
        found["acceptance"] = NOTHING
    for name, cost in _SAVINGS.items():
        found[name] = resampling.saving(own[cost], own["bytes"], ar[cost], ar["bytes"])
    if setting.name == AR:
        found |= dict.fromkeys(_SAVINGS, QuotientEstimate(0.0)) | dict.fromkeys(
            (*_RATIOS, "agreement"), QuotientEstimate(1.0)
        )
    return {
        "setting": setting.name,
        "strategy": setting.fields,
        "runs": runs,
        "bytes": int(own["bytes"].sum()),
        "seconds": float(own["seconds"].sum()),
        "python_judged": int(own["python_judged"].sum()),
        **{name: one.value for name, one in found.items()},
        "intervals": {name: one.interval for name, one in found.items() if one.interval is not None},
    }
