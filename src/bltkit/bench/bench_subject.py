"""What is measured: a model with its scorer and rule, and the text that it reads."""

import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit import patching
from bltkit.checkpoint import Bundle, ScorerModule
from bltkit.config import nearest
from bltkit.model import Blt, EntropyModel, blt_preset, entropy_preset
from bltkit.model.quantize import FORMS, FormedLinear, WeightForm, reform
from bltkit.native import on_backend
from bltkit.patches import Patches
from bltkit.patching import PatchingRule, ThresholdRule
from bltkit.vocab import encode

PATCH_BYTES = 4.5
"""Mean bytes per patch of a random model: its threshold is the 1 - 1/4.5 quantile of its entropies."""

DAMPING = 0.1
"""Of the attention in a random entropy model."""

MAX_CONTEXT = 400_000
"""Bytes of text that every Python has."""


@dataclass(frozen=True)
class BenchSubject:
    """A model that answers for whole rows."""

    name: str
    model: Blt
    scorer: ScorerModule
    rule: PatchingRule

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.embed.bytes.weight.device

    def on(self, device: torch.device | str) -> Self:
        """On another device; where it is one already, the same."""
        if torch.device(device) == self.device:
            return self
        return replace(self, model=copy.deepcopy(self.model).to(device), scorer=copy.deepcopy(self.scorer).to(device))

    def patches(self, ids: Int64[Tensor, "B T"]) -> Patches:
        """Scores and rule."""
        scores = self.scorer.scores(ids)
        return patching.patch(self.rule, ids, scores, documents=self.model.config.document_masks)

    def reformed(self, form: WeightForm) -> Self:
        """With the large matrices of model and scorer in another form, for decoding.

        The weights must be fp32, or in that form already. Raises ValueError for a form that is unknown or that the
        machine has no kernels for.
        """
        if form not in FORMS:
            raise ValueError(f"no form of weights {form!r}{nearest(form, FORMS)}")
        if {inner.form for inner in self.model.modules() if isinstance(inner, FormedLinear)} == {form}:
            return self
        return replace(self, model=reform(self.model, form), scorer=reform(self.scorer, form))

    def run_by(self, backend: str) -> Self:
        """With steps run by `backend`; after `reformed`. Raises as `native.on_backend` does."""
        model, scorer = on_backend(backend, self.model, self.scorer)
        assert model is not None and scorer is not None
        return replace(self, model=model, scorer=scorer)

    @torch.inference_mode()
    def logits(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """All that a forward pass from bytes is: scorer, rule, model."""
        logits: Tensor = self.model(ids, self.patches(ids))
        return logits


def benchmark_text(num_bytes: int) -> bytes:
    """The first bytes of the running Python's own documentation. Raises ValueError where there is not as much."""
    from pydoc_data.topics import topics

    if not 1 <= num_bytes <= MAX_CONTEXT:
        raise ValueError(f"context = {num_bytes}: the benchmark text has 1 to {MAX_CONTEXT} bytes")
    return "\n".join(topics[name] for name in sorted(topics)).encode()[:num_bytes]


def row(context: int, batch: int = 1) -> Int64[Tensor, "B T"]:
    """`context` ids in every row: BOS and text, each row further on in the text."""
    text = benchmark_text(batch * context)
    return torch.stack([encode(text[i * context : (i + 1) * context])[:context] for i in range(batch)])


def preset_subject(name: str, *texts: Int64[Tensor, "B T"]) -> BenchSubject:
    """Random weights of seed 0 in fp32, cut into patches of 4.5 bytes, the mean over these rows.

    The entropy model's attention is damped. Otherwise random scores drift with the mean of the window, and of two
    stretches of text one has a patch for every second byte and the other none.

    Raises ValueError for a preset that has no entropy model beside it.
    """
    generator = torch.Generator().manual_seed(0)
    model = Blt(blt_preset(name)).reset_parameters(generator).eval()
    scorer = EntropyModel(entropy_preset(name)).reset_parameters(generator).eval()
    with torch.no_grad():
        for weight_name, weight in scorer.stack.named_parameters():
            if weight_name.endswith("attention.out.weight"):
                weight.mul_(DAMPING)
    scores = torch.cat([scorer.scores(ids)[:, 1:].flatten() for ids in texts])
    return BenchSubject(name, model, scorer, ThresholdRule(threshold=clear_threshold(scores)))


def subject_of(name: str, bundle: Bundle) -> BenchSubject:
    """A loaded checkpoint. Raises ValueError where it is no whole model."""
    if bundle.model is None or bundle.scorer is None or bundle.rule is None:
        raise ValueError(f"model {name!r} holds no BLT with a scorer and a rule; name one that does, or a preset")
    return BenchSubject(name, bundle.model.eval(), bundle.scorer.eval(), bundle.rule)


def clear_threshold(scores: Float[Tensor, " T"], patch_bytes: float = PATCH_BYTES) -> float:
    """A threshold for patches of about `patch_bytes`, as far from any score as the neighbourhood of the quantile has.

    Two programs round differently; with a score right at the threshold they would cut differently and so disagree.
    """
    values = scores.double().sort().values
    at = round((1 - 1 / patch_bytes) * (len(values) - 1))
    near = values[max(0, at - len(values) // 100 - 1) : at + len(values) // 100 + 2]
    if len(near) < 2:
        return float(values[at])
    widest = int(near.diff().argmax())
    return float((near[widest] + near[widest + 1]) / 2)
