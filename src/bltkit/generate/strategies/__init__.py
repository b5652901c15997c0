"""Decoding strategies (seam 5). A new strategy is its own file and a line in `STRATEGIES`."""

from typing import Annotated

from bltkit.config import nearest, parse, parse_value
from bltkit.generate.strategies.ar import Autoregressive
from bltkit.generate.strategies.auto import Auto
from bltkit.generate.strategies.diffusion import Diffusion
from bltkit.generate.strategies.speculative import Speculative
from bltkit.generate.strategies.strategy import Outcome, Pending, Proposal, Strategy
from bltkit.generate.strategies.verified import Verified
from bltkit.registry import Registry

STRATEGIES = Registry(
    "strategy",
    Strategy,
    "bltkit.generate.strategies.ar:Autoregressive",
    "bltkit.generate.strategies.speculative:Speculative",
    "bltkit.generate.strategies.diffusion:Diffusion",
    "bltkit.generate.strategies.verified:Verified",
    "bltkit.generate.strategies.auto:Auto",
)
"""Every strategy by its kind."""

Strategies = Annotated[Strategy, STRATEGIES]
"""Any strategy; as the type of a config field it reads `{kind = "speculative", draft = 8}`."""

ALIASES = {"blt": "ar", "blt-s": "speculative", "blt-d": "diffusion", "blt-dv": "verified", "blt-h": "verified"}
"""Names of the papers; BLT-H is what some call BLT-DV."""


def strategy_kind(name: str) -> str:
    """The package's name of a strategy, given by it or by a paper's name in any case (`BLT-S`).

    Raises ValueError that names the nearest one.
    """
    kind = ALIASES.get(name.lower(), name)
    if kind not in STRATEGIES:
        raise ValueError(f"no strategy {name!r}{nearest(name.lower(), [*STRATEGIES, *ALIASES])}")
    return kind


def strategy_of(kind: str, **fields: object) -> Strategy:
    """The strategy called `kind`, or by a paper's name; fields that are None count as not given.

    Raises ValueError that names the nearest one, or the fields that it has.
    """
    kind = strategy_kind(kind)
    values = {name: value for name, value in fields.items() if value is not None}
    known = [name for name in STRATEGIES[kind].model_fields if name != "kind"]
    for name in values:
        if name not in known:
            hint = nearest(name, known) if known else "; it has none"
            raise ValueError(f"strategy {kind!r} has no field {name!r}{hint}; `--strategy list` shows all fields")
    try:
        strategy: Strategy = parse(STRATEGIES[kind], values, f"strategy {kind}")
    except ValueError as error:
        raise ValueError(f"{error}; `--strategy list` shows all fields") from None
    return strategy


def parse_strategy(text: str, where: str = "strategy", **further: object) -> Strategy:
    """Read `kind` or `kind:field=value,field=value`, such as `diffusion:alpha=0.7,align_border=true`.

    further: fields given beside the text; None counts as not given. Raises ValueError with one line for an unknown
    strategy or field, a field that is given twice, or a value out of range; `where` names the origin.
    """
    kind, _, rest = text.partition(":")
    fields: dict[str, object] = {}
    for item in rest.split(",") if rest.strip() else []:
        field, equals, value = (part.strip() for part in item.partition("="))
        if not (field and equals and value) or field in fields:
            raise ValueError(f"{where} {text!r}: {item!r} is not a further field=value, as in 'speculative:draft=8'")
        fields[field] = parse_value(value)
    for name, second in further.items():
        if second is not None and name in fields:
            raise ValueError(f"{where} {text!r}: {name} = {second} is given a second time; leave out one of them")
    return strategy_of(kind.strip(), **{**further, **fields})


__all__ = [
    "ALIASES",
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
    "parse_strategy",
    "strategy_kind",
    "strategy_of",
]
