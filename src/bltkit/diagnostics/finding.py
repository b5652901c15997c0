"""What `blt check` reports: one thing that was looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `cause` says what a bad value usually comes from, `remedy` what to do then.

    value: None where there is nothing to measure (no window, nothing moved) or too little text to measure on.
    expected: the sound range, in words.
    detail: lines for people that explain the value, shown whatever the status.
    numbers: all that was measured, by name; None where there was nothing to measure.
    """

    name: str
    status: Status
    value: float | None
    expected: str
    cause: str
    remedy: str
    detail: tuple[str, ...] = ()
    numbers: Mapping[str, float | None] = field(default_factory=dict)
