"""Space patching: a patch ends after the first of a run of space-like bytes (BLT section 2.2; docs/model.md 4.2)."""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bltkit.patching.rule import PatchingRule
from bltkit.vocab import OFFSET


class SpaceRule(PatchingRule):
    """Words: "Hi,  a b" is cut into "Hi,", "  a ", "b".

    Space-like is whatever is neither an ASCII letter or digit nor a UTF-8 continuation byte, so special ids
    and the lead bytes 0xC0..0xFF count as space-like. A space-like byte whose predecessor is not space-like
    ends a patch, and so does every special id.
    """

    kind: Literal["space"] = "space"

    lookback: ClassVar[int] = 1

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        value = ids - OFFSET
        folded = value | 0x20  # upper case onto lower case
        letter = (folded >= ord("a")) & (folded <= ord("z"))
        digit = (value >= ord("0")) & (value <= ord("9"))
        continuation = (value >= 0x80) & (value < 0xC0)
        inside_word = letter | digit | continuation
        return (~inside_word[:, 1:] & inside_word[:, :-1]) | (value[:, 1:] < 0)
