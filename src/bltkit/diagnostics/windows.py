"""The window of an entropy model: what the text looks like with it and without, and which the weights expect.

Released checkpoints were trained with a window of 512 bytes. Versions of transformers from 2025 ignore it, so the same
files give other entropies there, and other patches, from byte 513 of a row on. Both are computed here on the same rows.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bltkit.checkpoint import MANIFEST
from bltkit.diagnostics.finding import Finding
from bltkit.eval.score import BATCH_BYTES
from bltkit.files import read_json
from bltkit.model import EntropyModel
from bltkit.patching import PatchingRule, patch
from bltkit.vocab import encode

RELEASED_WINDOW = 512
MEASURED_BYTES = 8192
"""Text of all rows together, and the longest row."""
WINDOWS_A_ROW = 16
"""Length of a row: as in the public reports of 8,192 bytes for a window of 512."""
FOREIGN_WINDOW = 0.1
"""Nats per byte by which text may cost more with the window than without before the window is doubted."""
MOVED_PATCHES = 0.05
"""Share by which patch sizes differ before the difference is pointed out."""


@dataclass(frozen=True)
class Stretch:
    """Means over the same bytes of all rows.

    entropy: of the predictions, in nats. surprise: -ln p of the bytes, in nats. patches: that begin there, None where
    no rule of entropies places any.
    """

    num_bytes: int
    entropy: float
    surprise: float
    patches: int | None

    @property
    def patch_bytes(self) -> float | None:
        """Mean bytes per patch; None where none begins."""
        return self.num_bytes / self.patches if self.patches else None


@dataclass(frozen=True)
class WindowEffect:
    """The same rows under two windows, which agree up to the shorter one's length.

    border: bytes of that window. before: it, the first bytes of each row, the same under both. after: the rest of each
    row with the window; unlimited: the rest without one.
    """

    border: int
    row_bytes: int
    before: Stretch
    after: Stretch
    unlimited: Stretch

    def numbers(self) -> Mapping[str, float | None]:
        """All of it, by name."""
        numbers: dict[str, float | None] = {"border": float(self.border), "row_bytes": float(self.row_bytes)}
        parts = {"before": self.before, "after_with_window": self.after, "after_without_window": self.unlimited}
        for name, part in parts.items():
            numbers[f"{name}_bytes"] = float(part.num_bytes)
            numbers[f"{name}_entropy"], numbers[f"{name}_surprise"] = part.entropy, part.surprise
            numbers[f"{name}_patches"] = None if part.patches is None else float(part.patches)
            numbers[f"{name}_patch_bytes"] = part.patch_bytes
        return numbers


def with_window(scorer: EntropyModel, window: int | None) -> EntropyModel:
    """The same weights, shared, under another window."""
    tensors = {id(tensor): tensor for tensor in (*scorer.parameters(), *scorer.buffers())}
    changed = copy.deepcopy(scorer, cast(dict[int, Any], tensors))
    changed.config = changed.stack.config = scorer.config.replace(window=window)
    return changed


def bytes_for_effect(border: int) -> int:
    """Bytes of text that `window_effect` needs at least."""
    return 2 * border


@torch.no_grad()
def window_effect(scorer: EntropyModel, rule: PatchingRule | None, text: bytes) -> WindowEffect:
    """Measure about 8,192 bytes of `text` with the model's window and without, in rows of 16 windows.

    A model without a window is measured with one of 512. `text` holds at least `bytes_for_effect`.
    """
    border = scorer.config.window or RELEASED_WINDOW
    length = min(len(text), WINDOWS_A_ROW * border, max(MEASURED_BYTES, bytes_for_effect(border)))
    count = max(1, min(MEASURED_BYTES, len(text)) // length)
    begins = [(len(text) - length) * i // max(1, count - 1) for i in range(count)]
    rows = [text[begin : begin + length] for begin in begins]
    limited = _measured(with_window(scorer, border), rule, rows, border)
    _, unlimited = _measured(with_window(scorer, None), rule, rows, border)
    return WindowEffect(border, length, *limited, unlimited)


def _measured(
    scorer: EntropyModel, rule: PatchingRule | None, rows: Sequence[bytes], border: int
) -> tuple[Stretch, Stretch]:
    """The first `border` bytes of each row, and the others."""
    device = next(scorer.parameters()).device
    group = max(1, BATCH_BYTES // len(rows[0]))
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    reads_entropy = rule is not None and rule.streams and rule.scores == "entropy"
    for i in range(0, len(rows), group):
        ids = torch.stack([encode(row) for row in rows[i : i + group]]).to(device)
        logits = scorer(ids)
        scores = scorer.score(logits)
        wide = logits[:, :-1].float()
        surprise = F.cross_entropy(wide.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        starts = torch.zeros_like(surprise, dtype=torch.bool)
        if reads_entropy and rule is not None:
            starts = patch(rule, ids, scores).starts[:, 1:-1]
        columns.append((scores[:, :-1].double().cpu(), surprise.double().cpu(), starts.cpu()))
    entropies, surprises, opened = (torch.cat(parts) for parts in zip(*columns, strict=True))

    def stretch(of: slice) -> Stretch:
        opens = int(opened[:, of].sum()) if reads_entropy else None
        size = entropies[:, of].numel()
        return Stretch(size, float(entropies[:, of].mean()), float(surprises[:, of].mean()), opens)

    return stretch(slice(0, border)), stretch(slice(border, None))


def window_effect_findings(scorer: EntropyModel, rule: PatchingRule | None, text: bytes) -> Iterator[Finding]:
    """What the window does on this text, and whether the weights expect it."""
    window, border = scorer.config.window, scorer.config.window or RELEASED_WINDOW
    if len(text) < bytes_for_effect(border):
        yield Finding(
            "window-effect",
            "ok",
            None,
            f"at least {bytes_for_effect(border):,} bytes of text to measure on",
            "the text ends before the window does",
            "name more text (--files)",
        )
        return
    effect = window_effect(scorer, rule, text)
    dearer = effect.after.surprise - effect.unlimited.surprise
    foreign = window is not None and dearer > FOREIGN_WINDOW
    missing = window is None and dearer < -FOREIGN_WINDOW
    yield Finding(
        "window-effect",
        "problem" if missing else "warning" if foreign else "ok",
        dearer,
        "below 0.1: nats per byte by which text after the window costs more with it than without"
        if window is not None
        else "above -0.1: the same bytes should not become cheaper with a window of 512",
        f"the weights predict better with a window of {border}: it was lost in a conversion"
        if missing
        else f"the weights predict better without the window of {border}: they were trained with a longer one or none",
        _remedy(f'"sliding_window": {border}' if missing else '"sliding_window": null, or to the longer window'),
        detail=tuple(_lines(effect, window)),
        numbers=effect.numbers(),
    )


def _remedy(setting: str) -> str:
    return f"set {setting} in patcher_config of config.json (ours: `window` of the entropy model), and calibrate again"


def _lines(effect: WindowEffect, window: int | None) -> Iterator[str]:
    border = effect.border
    yield f"bytes 1 to {border} of a row: {_told(effect.before)}; the same with and without a window"
    yield f"from there to byte {effect.row_bytes:,}, window of {border}: {_told(effect.after)}"
    yield f"from there to byte {effect.row_bytes:,}, no window: {_told(effect.unlimited)}"
    patches = effect.before.patches, effect.after.patches, effect.unlimited.patches
    if None in patches:
        return
    first, limited, unlimited = map(int, cast(tuple[int, int, int], patches))
    whole = effect.before.num_bytes + effect.after.num_bytes
    totals = f"{whole:,} bytes are {first + limited:,} patches with the window and {first + unlimited:,} without"
    if abs(limited - unlimited) <= MOVED_PATCHES * max(1, limited):
        yield f"{totals}: on this text it matters little which program reads the checkpoint"
    elif window is None:
        yield f"{totals}; this checkpoint sets none, so bltkit and transformers cut without one"
    else:
        yield (
            f"{totals}, which is how transformers of 2025 cuts them; bltkit and transformers 5.23 apply the window. "
            f"For equal patches update transformers, or keep rows within {border} bytes"
        )


def _told(part: Stretch) -> str:
    size = "" if part.patch_bytes is None else f", {part.patch_bytes:.2f} bytes per patch"
    return f"entropy {part.entropy:.2f} nats, cost {part.surprise:.2f} nats per byte{size}"


def window_field_finding(directory: Path) -> Finding | None:
    """Are the windows written down in a config.json of Hugging Face's; None where nothing is missing.

    bltkit.json always holds them, and is what counts beside it.
    """
    if (directory / MANIFEST).exists():
        return None
    config = read_json(directory / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "blt":
        return None
    patcher = config.get("patcher_config") or {}
    absent = {
        "patcher_config.sliding_window": config.get("patch_in_forward", True) and "sliding_window" not in patcher,
        "local_attention_window_len": "local_attention_window_len" not in config,
    }
    names = [name for name, is_absent in absent.items() if is_absent]
    if not names:
        return None
    return Finding(
        "window-field",
        "warning",
        None,
        f"{' and '.join(absent)} in {directory / 'config.json'}",
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing: bltkit and transformers 5.23 then take "
        f"{RELEASED_WINDOW} bytes, versions of 2025 take no window, so patches differ after byte {RELEASED_WINDOW}",
        f"write {' and '.join(f'{name} = {RELEASED_WINDOW}' for name in names)} into the file if the weights are "
        f"Meta's, or null if they were trained without; window-effect says which of the two costs fewer nats",
    )
