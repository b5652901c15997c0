"""ByteLM: a model, what scores its text and the rule that cuts it, as one object. Python's side of the verbs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.checkpoint import Bundle, ScorerModule, load_bundle, resolve_model, save_bundle
from bltkit.config import parse
from bltkit.eval.score import Score, score
from bltkit.generate import Chunk, Finish, Sampling, Session, Stats, generate
from bltkit.model import Blt, BoundaryModel
from bltkit.patching import PatchingRule, ScoreKind, parse_rule, patch
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.vocab import encode, to_bytes


@dataclass(frozen=True)
class Generation:
    """A finished continuation: its bytes (prompt and stop strings left out), why it ended, and what it cost."""

    data: bytes
    finish: Finish
    stats: Stats

    @property
    def text(self) -> str:
        """The bytes as text; what is not UTF-8 shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")


class ByteLM:
    """A byte language model that is ready to use.

    model: the BLT, or None where only an entropy model was loaded (it patches and scores, but does not generate).
    scorer: what gives every byte a score (an entropy model), or None for rules that read none.
    rule: which bytes open a patch. record: how the model was trained.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @classmethod
    def load(cls, model: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Self:
        """Load MODEL: a checkpoint directory (ours or Hugging Face's), `bltkit:NAME` or `hf:OWNER/NAME`.

        dtype: of the weights in memory, fp32 by default. Raises ValueError with the remedy if it cannot be loaded.
        """
        return cls(load_bundle(resolve_model(str(model)), dtype=dtype, device=device))

    @property
    def model(self) -> Blt | None:
        """The BLT."""
        return self.bundle.model

    @property
    def scorer(self) -> ScorerModule | None:
        """The entropy (or boundary) model."""
        return self.bundle.scorer

    @property
    def rule(self) -> PatchingRule | None:
        """The patching rule."""
        return self.bundle.rule

    @property
    def record(self) -> dict[str, Any]:
        """The training record."""
        return self.bundle.record

    def save(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint; `directory` must not exist. Raises ValueError where it does, OSError on a full disk."""
        save_bundle(directory, self.bundle, dtype=dtype)

    def with_patching(self, rule: PatchingRule | str) -> "ByteLM":
        """The same model under another rule, given as a value or as `kind:field=value,...`.

        Raises ValueError for a rule that reads scores which this model does not give.
        """
        parsed = parse_rule(rule) if isinstance(rule, str) else rule
        if parsed.scores not in (None, self._score_kind()):
            given = "none" if self.scorer is None else f"{self._score_kind()} scores"
            raise ValueError(f"rule {parsed.kind!r} reads {parsed.scores} scores, but this model gives {given}")
        return ByteLM(replace(self.bundle, rule=parsed))

    def patches(self, text: str | bytes) -> PatchedText:
        """How `text` is cut into patches, with the scores that decided it."""
        scorer = self.scorer
        if scorer is None:
            return patch_text(to_bytes(text), self._needed_rule())
        device = next(scorer.parameters()).device
        return patch_text(
            to_bytes(text),
            self._needed_rule(),
            lambda ids: scorer.scores(ids.to(device)),
            score_kind=self._score_kind(),
        )

    def generate(self, prompt: str | bytes = b"", **options: Any) -> Generation:
        """Continue `prompt`; options as for `stream`."""
        chunks = list(self.stream(prompt, **options))
        finish, stats = chunks[-1].finish, chunks[-1].stats
        assert finish is not None and stats is not None
        return Generation(b"".join(chunk.data for chunk in chunks), finish, stats)

    def stream(
        self,
        prompt: str | bytes = b"",
        *,
        max_bytes: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
        stop: str | bytes | Sequence[str | bytes] = (),
    ) -> Iterator[Chunk]:
        """Continue `prompt`, handing out bytes as they become certain; the last chunk has `finish` and `stats`.

        temperature 0 is greedy; `stop` strings end the text and are not part of it; a sample depends on `seed`
        and the prompt alone. Raises ValueError for options out of range.
        """
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
        sampling: Sampling = parse(Sampling, options, "sampling")
        strings = [stop] if isinstance(stop, str | bytes) else stop
        yield from generate(self.session(prompt), sampling, max_bytes, tuple(to_bytes(one) for one in strings))

    def session(self, prompt: str | bytes = b"") -> Session:
        """The cached state behind BOS and `prompt`, for decoding of one's own."""
        session = Session.start(self._needed_model(), self.scorer, self._needed_rule())
        return session.extend(encode(prompt))

    def score(
        self,
        text: str | bytes,
        *,
        context: int | None = None,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Bits per byte of `text`: windows of `context` bytes (default: the training row), each byte scored once."""
        return score(self.bundle, text, context=context, stride=stride, progress=progress)

    @torch.no_grad()
    def logits(self, ids: Int64[Tensor, " T"] | Sequence[int]) -> Float[Tensor, "T V"]:
        """Raw logits for the id after each of `ids` (BOS is the caller's to put in front), without any cache."""
        model, rule = self._needed_model(), self._needed_rule()
        row = torch.as_tensor(ids, dtype=torch.long, device=model.decoder.head.weight.device)[None]
        if row.shape[1] == 0:
            raise ValueError("ids are empty; a row has at least BOS (id 1)")
        scores = None if rule.scores is None or self.scorer is None else self.scorer.scores(row)
        patches = patch(rule, row, scores, documents=model.config.document_masks)
        return model(row, patches)[0]

    def _score_kind(self) -> ScoreKind | None:
        if self.scorer is None:
            return None
        return "boundary" if isinstance(self.scorer, BoundaryModel) else "entropy"

    def _needed_rule(self) -> PatchingRule:
        if self.rule is None:
            raise ValueError("this model has no patching rule; run `blt calibrate` on it, or give one (--rule)")
        return self.rule

    def _needed_model(self) -> Blt:
        if self.model is None:
            raise ValueError("this checkpoint holds no BLT, only a model that places patches; name a BLT's checkpoint")
        return self.model


def load(model: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> ByteLM:
    """`ByteLM.load`."""
    return ByteLM.load(model, dtype=dtype, device=device)
