"""Patching: which bytes open a patch (seam 1). Ids and scores go in, `Patches` come out.

`patch(rule, ids, entropies)` does a batch; `extend(rule, stream, ids, entropies)` goes on from
`start_stream(rule)` byte by byte and gives the same answers.
`parse_rule("threshold:threshold=1.34")` reads a rule.
"""

from bltkit.patching.apply_rule import patch
from bltkit.patching.bpe import BpeOracleRule, BpeRule
from bltkit.patching.entropy_rules import BothRule, RiseRule, ThresholdRule
from bltkit.patching.random import RandomRule
from bltkit.patching.rule import PatchingRule, ScoreKind
from bltkit.patching.rule_stream import Answers, Stream, ask, extend, start_stream
from bltkit.patching.rules import RULES, Rule, parse_rule
from bltkit.patching.space import SpaceRule
from bltkit.patching.stride import ByteRule, StrideRule

__all__ = [
    "RULES",
    "Answers",
    "BothRule",
    "BpeOracleRule",
    "BpeRule",
    "ByteRule",
    "PatchingRule",
    "RandomRule",
    "RiseRule",
    "Rule",
    "ScoreKind",
    "SpaceRule",
    "Stream",
    "StrideRule",
    "ThresholdRule",
    "ask",
    "extend",
    "parse_rule",
    "patch",
    "start_stream",
]
