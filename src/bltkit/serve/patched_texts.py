"""Patches of a text, as `blt patch` cuts it."""

from bltkit.checkpoint import Bundle
from bltkit.model import BoundaryModel
from bltkit.patching import ScoreKind
from bltkit.patching.patched import patch_text
from bltkit.serve.messages import Failed, Patch, Patched
from bltkit.terminal.control_characters import visible
from bltkit.terminal.streams import say


def patched(bundle: Bundle, order: Patch, longest: int) -> Patched | Failed:
    """The patches of a text of up to `longest` bytes: it is read in one pass, for which running sequences wait."""
    if len(order.data) > longest:
        text = f"the text is {len(order.data):,} bytes; at most {longest:,} are cut at once"
        return Failed(order.key, "too_long", text)
    scorer = bundle.scorer
    assert bundle.rule is not None
    try:
        if scorer is None:
            return Patched(order.key, patch_text(order.data, bundle.rule))
        device = next(scorer.parameters()).device
        kind: ScoreKind = "boundary" if isinstance(scorer, BoundaryModel) else "entropy"
        cut = patch_text(order.data, bundle.rule, lambda ids: scorer.scores(ids.to(device)), score_kind=kind)
    except Exception as error:
        say(visible(f"request {order.key} failed: {type(error).__name__}: {error}"))
        return Failed(order.key, "internal", "the model could not compute this request; the server's log says why")
    return Patched(order.key, cut)
