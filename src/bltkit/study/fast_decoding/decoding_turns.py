"""Turns of the study `fast-decoding`: every setting continues one prompt with one seed, one setting after another.

A turn's order of settings rotates, so that a machine that changes its pace does so for all of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bltkit.checkpoint import Bundle, load_bundle, resolve_model, scorer_hash
from bltkit.eval.score import byte_scores, window_shape
from bltkit.generate import Request, SequenceBatch, Session, Stats
from bltkit.model import Blt
from bltkit.study.fast_decoding.decoding_rows import continuation, heldout_row
from bltkit.study.fast_decoding.decoding_settings import Setting
from bltkit.study.fast_decoding.passages import Passages
from bltkit.study.fast_decoding.quality import nats_of
from bltkit.vocab import encode


@dataclass(frozen=True)
class DecodingSubject:
    """A model that is studied.

    settings: those that suit it. left_out: the others, and why. weights: hash of all weights, the scorer's too.
    """

    name: str
    source: str
    bundle: Bundle
    settings: tuple[Setting, ...]
    left_out: Mapping[str, str]
    weights: str

    @property
    def about(self) -> dict[str, Any]:
        """Description of the model in each of its rows."""
        config, record = _model(self.bundle).config, self.bundle.record
        return {
            "model": self.name,
            "source": self.source,
            "block": config.diffusion_block,
            "decoder_input": config.decoder_input,
            "objective": record.get("config", {}).get("objective"),
            "steps": record.get("steps"),
            "bytes_seen": record.get("bytes_seen"),
            "weights": self.weights,
        }

    def turn(self, prompt: bytes, settings: Sequence[Setting], request: Request) -> dict[str, Any]:
        """Continuation by each setting, by its name. The prompt is read once and not timed."""
        assert self.bundle.rule is not None
        session = Session.start(_model(self.bundle), self.bundle.scorer, self.bundle.rule).extend(encode(prompt))
        made = {}
        for setting in settings:
            data, stats, rounds = decode(session.fork(), setting, request)
            made[setting.name] = continuation(data, stats, rounds, nats_of(session, data))
        return made

    def heldout(self, text: Passages) -> dict[str, Any] | None:
        """Row of how well the model predicts what follows the prompts in the text; None where nothing does."""
        passages = [passage for passage in text.passages if passage.rest]
        shape = window_shape(self.bundle.record, None, None)
        nats = [
            sum(byte_scores(self.bundle, passage.prompt + passage.rest, *shape).nats.tolist()[len(passage.prompt) :])
            for passage in passages
        ]
        return heldout_row(nats, [len(passage.rest) for passage in passages]) if passages else None


def load_subject(name: str, source: str, settings: Sequence[Setting]) -> DecodingSubject:
    """Load a model. Raises ValueError where `source` holds no BLT with a patching rule."""
    bundle = load_bundle(resolve_model(source))
    if bundle.model is None or bundle.rule is None:
        raise ValueError(f"model {name!r} ({source}) holds no BLT with a patching rule; name a BLT's checkpoint")
    bundle.model.eval()
    faults = {setting.name: setting.fault(bundle.model) for setting in settings}
    suited = tuple(setting for setting in settings if faults[setting.name] is None)
    left_out = {setting: fault for setting, fault in faults.items() if fault is not None}
    return DecodingSubject(name, source, bundle, suited, left_out, _hash(bundle))


def decode(session: Session, setting: Setting, request: Request) -> tuple[bytes, Stats, int]:
    """Bytes that a setting generates, their cost, and the number of rounds (the first choice is none)."""
    batch, data, rounds = SequenceBatch().admit(session, [replace(request, strategy=setting.strategy)]), b"", -1
    stats: Stats | None = None
    while batch.rows:
        batch, chunks = batch.step()
        rounds += 1
        for _, chunk in chunks:
            data, stats = data + chunk.data, chunk.stats
    assert stats is not None
    return data, stats, rounds


def _model(bundle: Bundle) -> Blt:
    assert bundle.model is not None, "`load_subject` refuses other bundles"
    return bundle.model


@torch.no_grad()
def _hash(bundle: Bundle) -> str:
    model = _model(bundle)
    state = hashlib.sha256(f"{model.config.model_dump_json(exclude_defaults=True)}{bundle.rule}".encode())
    if bundle.scorer is not None:
        state.update(scorer_hash(bundle.scorer).encode())
    for name, weight in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(memoryview(weight.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return state.hexdigest()[:16]
