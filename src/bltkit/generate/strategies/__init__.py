"""Decoding strategies, and the one line that registers each: its place in `Strategies`."""

from typing import Annotated, get_args

from pydantic import Field

from bltkit.config import describe_kinds, nearest, parse, parse_value
from bltkit.generate.strategies.ar import Autoregressive
from bltkit.generate.strategies.auto import Auto
from bltkit.generate.strategies.diffusion import Diffusion
from bltkit.generate.strategies.speculative import Speculative
from bltkit.generate.strategies.strategy import Outcome, Pending, Proposal, Strategy
from bltkit.generate.strategies.verified import Verified

Strategies = Annotated[Autoregressive | Speculative | Diffusion | Verified | Auto, Field(discriminator="kind")]

STRATEGIES: dict[str, type[Strategy]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(Strategies)[0])
}
"""By name."""


def strategy_of(kind: str, **fields: object) -> Strategy:
    """The strategy called `kind`; fields that are None count as not given.

    Raises ValueError that names the nearest one, or the fields that it has.
    """
    if kind not in STRATEGIES:
        raise ValueError(f"no strategy {kind!r}{nearest(kind, list(STRATEGIES))}")
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        found: Strategy = parse(STRATEGIES[kind], given, f"strategy {kind}")
    except ValueError as error:
        raise ValueError(f"{error}; `--strategy list` shows all fields") from None
    return found


def parse_strategy(text: str, where: str = "strategy") -> Strategy:
    """Read `kind` or `kind:field=value,field=value`, such as `diffusion:alpha=0.7,align_border=true`.

    Raises ValueError with one line for an unknown strategy or field, or a value out of range; `where` names the origin.
    """
    kind, _, rest = text.partition(":")
    fields: dict[str, object] = {}
    for item in rest.split(",") if rest.strip() else []:
        field, equals, value = (part.strip() for part in item.partition("="))
        if not (field and equals and value) or field in fields:
            raise ValueError(f"{where} {text!r}: {item!r} is not a further field=value, as in 'speculative:draft=8'")
        fields[field] = parse_value(value)
    return strategy_of(kind.strip(), **fields)


def describe_strategies() -> str:
    """The list of strategies with their fields, defaults and an example each: what `--strategy list` prints."""
    return describe_kinds("decoding strategies", STRATEGIES)


__all__ = [
    "STRATEGIES",
    "Auto",
    "Autoregressive",
    "Diffusion",
    "Outcome",
    "Pending",
    "Proposal",
    "Speculative",
    "Strategies",
    "Strategy",
    "Verified",
    "describe_strategies",
    "parse_strategy",
    "strategy_of",
]
