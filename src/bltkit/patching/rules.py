"""The patching rules, one line each, and their short form in text. A new rule is its own file and a line here."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeAlias

from bltkit.config import example_of, nearest, parse, parse_value
from bltkit.patching.rule import PatchingRule
from bltkit.registry import Registry

RULES = Registry(
    "patching rule",
    PatchingRule,
    "bltkit.patching.entropy_rules:ThresholdRule",
    "bltkit.patching.entropy_rules:RiseRule",
    "bltkit.patching.entropy_rules:BothRule",
    "bltkit.patching.stride:StrideRule",
    "bltkit.patching.stride:ByteRule",
    "bltkit.patching.space:SpaceRule",
    "bltkit.patching.random:RandomRule",
    "bltkit.patching.bpe:BpeRule",
    "bltkit.patching.bpe:BpeOracleRule",
)
"""Every rule by its kind."""

Rule: TypeAlias = Annotated[PatchingRule, RULES]
"""Any patching rule; as the type of a config field it reads `{kind = "threshold", threshold = 1.3}`."""


def parse_rule(rule: str | Mapping[str, Any], where: str = "rule") -> PatchingRule:
    """Read `kind` or `kind:field=value,field=value`, or the same as a mapping with the key `kind`.

    `str(rule)` is the inverse. Values of the text form are TOML or bare words and hold no commas. Raises
    ValueError with one line for an unknown kind or field or a bad value; `where` names the origin.
    """
    data = _fields(rule, where) if isinstance(rule, str) else dict(rule)
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in RULES:
        close = get_close_matches(str(kind), RULES, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{where}: unknown rule {kind!r};{hint} rules: {', '.join(RULES)} (`--rule list` shows their fields)"
        )
    for name in data:
        if name not in RULES[kind].model_fields:
            known = [field for field in RULES[kind].model_fields if field != "kind"]
            raise ValueError(f"{where}: rule {kind!r} has no field {name!r}{nearest(name, known)}")
    try:
        return parse(RULES[kind], data, where)
    except ValueError as error:
        raise ValueError(f"{error}; for example {example_of(RULES[kind])}; `--rule list` shows all") from None


def _fields(text: str, where: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    data: dict[str, Any] = {"kind": kind.strip()}
    for item in rest.split(",") if rest.strip() else []:
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals or not name or not value.strip():
            raise ValueError(f"{where}: {item!r} in {text!r} is not field=value, as in 'stride:k=6,max_patch_bytes=8'")
        if name in data:
            raise ValueError(f"{where}: {name!r} is given twice in {text!r}")
        data[name] = parse_value(value.strip())
    return data
