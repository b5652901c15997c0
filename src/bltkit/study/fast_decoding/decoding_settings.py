"""Settings of decoding that the study compares: each is a strategy with its fields, written `kind:field=value,...`.

The written form is the setting's name in rows, in tables and on the command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bltkit.config import nearest
from bltkit.generate import Strategy, parse_strategy
from bltkit.model import Blt

AR = "ar"
"""The setting that all others are compared with."""

_SMALL = (
    AR,
    "speculative:draft=8",
    "diffusion:alpha=0.5",
    "diffusion:alpha=0.7",
    "diffusion:alpha=0.9",
    "diffusion:gamma=0.8",
    "diffusion:alpha=0.7,align_border=true",
    "diffusion:alpha=0.7,first=masked,latent=open",
    "verified",
    "auto",
)
_MORE = (
    "speculative:draft=4",
    "speculative:draft=16",
    "diffusion:gamma=0.5",
    "diffusion:gamma=1.0",
    "diffusion:alpha=0.9,align_border=true",
    "diffusion:gamma=0.8,align_border=true",
    "diffusion:gamma=0.8,first=masked,latent=open",
    "verified:align_border=true",
    "verified:alpha=0.3",
    "verified:gamma=1.5",
    "verified:gamma=2.0",
)
GRIDS = {AR: (AR,), "small": _SMALL, "full": _SMALL + _MORE}
"""Settings by the grid's name; "ar" is for further settings alone. `first=masked,latent=open` is the paper's own rule
(Fast BLT, algorithm 1): the block follows the prefix, all of it masked, and reads the latent of a patch cut short."""


@dataclass(frozen=True)
class Setting:
    """A strategy under its written name."""

    name: str
    strategy: Strategy

    def fault(self, model: Blt) -> str | None:
        """Reason why the model cannot decode so; None where it can."""
        try:
            self.strategy.check(model)
        except ValueError as error:
            return str(error)
        return None

    @cached_property
    def fields(self) -> dict[str, Any]:
        """All fields of the strategy as plain values."""
        return self.strategy.model_dump(mode="json")


def setting_of(name: str) -> Setting:
    """A setting from its written form, such as `diffusion:alpha=0.7,align_border=true`.

    Its name lists the fields in the strategy's own order, so that one setting has one name. Raises ValueError for an
    unknown strategy or field, or a value out of range.
    """
    strategy = parse_strategy(name, "setting")
    written = [
        f"{field}={_written(getattr(strategy, field))}"
        for field in type(strategy).model_fields
        if field in strategy.model_fields_set
    ]
    return Setting(":".join(filter(None, (strategy.kind, ",".join(written)))), strategy)


def settings_of(grid: str, further: Sequence[str] = ()) -> tuple[Setting, ...]:
    """The settings of a grid and further ones, each once, `ar` first.

    Raises ValueError for an unknown grid or setting.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid = {grid!r}{nearest(grid, list(GRIDS))}")
    settings = [setting_of(name) for name in (AR, *GRIDS[grid], *further)]
    return tuple({setting.name: setting for setting in settings}.values())


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
