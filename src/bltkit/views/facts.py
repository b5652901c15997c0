"""What is said about patches in words and figures, the same on paper and on screen."""

from dataclasses import dataclass
from pathlib import Path

from bltkit.patching import (
    BothRule,
    BpeOracleRule,
    BpeRule,
    ByteRule,
    PatchingRule,
    RandomRule,
    RiseRule,
    SpaceRule,
    StrideRule,
    ThresholdRule,
)
from bltkit.patching.patched import PatchedText
from bltkit.views.compare import Comparison


@dataclass(frozen=True)
class FactColumn:
    """A figure of every scheme: a head of two lines and one value per row."""

    head: tuple[str, str]
    values: tuple[str, ...]


def describe(rule: PatchingRule) -> str:
    """A rule in a few words; a rule that has none here shows itself as `parse_rule` reads it."""
    match rule:
        case ThresholdRule():
            words = f"entropy > {rule.threshold:.3g}"
        case RiseRule():
            words = f"entropy rises > {rule.rise:.3g}"
        case BothRule():
            words = f"> {rule.threshold:.3g} and rises > {rule.rise:.3g}"
        case StrideRule():
            words = f"every {rule.k:g} bytes"
        case ByteRule():
            words = "every byte"
        case SpaceRule():
            words = "after each word"
        case RandomRule():
            words = f"at random, every {rule.k:g} bytes"
        case BpeRule():
            words = f"token ends, logit > {rule.threshold:.3g}"
        case BpeOracleRule():
            words = f"tokens of {Path(rule.tokenizer).name}"
        case _:
            return str(rule)
    return words if rule.max_patch_bytes is None else f"{words}, up to {rule.max_patch_bytes} bytes"


def facts(patched: PatchedText) -> list[str]:
    """One text's figures, each a short phrase."""
    found = [count(len(patched.data), "byte", "bytes")]
    if patched.starts:
        found += [f"longest patch {patched.largest}", f"a border at {patched.border_rate:.1%} of bytes"]
    found.append(describe(patched.rule))
    if patched.next_opens is not None:
        found.append("the next byte opens a patch" if patched.next_opens else "the next byte continues the patch")
    return found


def statistics(comparison: Comparison) -> list[FactColumn]:
    """The figures of a comparison. Operations stand in the unit that fits the largest of them."""
    rows = comparison.schemes
    columns = [
        FactColumn(("", "patches"), tuple(str(len(row.patched.starts)) for row in rows)),
        FactColumn(("mean", "bytes"), tuple(f"{row.patched.mean_patch_bytes:.2f}" for row in rows)),
        FactColumn(("", "longest"), tuple(str(row.patched.largest) for row in rows)),
        FactColumn(("", "borders"), tuple(f"{row.patched.border_rate:.0%}" for row in rows)),
    ]
    costs = [row.latent_flops for row in rows if row.latent_flops is not None]
    if len(costs) == len(rows):
        unit, factor = ("GFLOP", 1e9) if max(costs) >= 1e10 else ("MFLOP", 1e6)
        values = tuple(f"{cost / factor:,.1f}" if cost < 100 * factor else f"{cost / factor:,.0f}" for cost in costs)
        columns.append(FactColumn(("global", f"{unit}/byte"), values))
    return columns


def draws_threshold(patched: PatchedText) -> bool:
    """Can the rule's threshold be drawn as a level among the scores."""
    return (
        patched.score_kind is not None
        and hasattr(patched.rule, "threshold")
        and patched.rule.scores == patched.score_kind
    )


def count(number: int, one: str, many: str) -> str:
    """`1 patch`, `2 patches`."""
    return f"{number:,} {one if number == 1 else many}"
