"""Training runs of a second: tiny models on a corpus of a few kilobytes, in a directory of the test's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from bltkit.checkpoint import is_token_model, load_bundle, load_token_model
from bltkit.config import apply_overrides, parse
from bltkit.tokens import train_bpe
from bltkit.train import Result, TrainConfig, read_metrics, train

STACK = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 24}
MODELS: dict[str, dict[str, Any]] = {
    "entropy": {"kind": "entropy", **STACK, "window": 16},
    "boundary": {"kind": "boundary", **STACK, "window": 16},
    "cnn": {"kind": "cnn", "width": 16},
    "blt": {
        "kind": "blt",
        "encoder": {**STACK, "window": 16},
        "latent": STACK | {"width": 32},
        "decoder": {**STACK, "window": 16},
        "ngrams": {"sizes": [3, 4], "buckets": 61},
    },
    "bpe": {"kind": "bpe", **STACK, "vocab_size": 300},
}
PLAIN = {"ngrams": {"sizes": []}, "pooling": "last", "encoder_cross_attn": False, "decoder_cross_attn": False}
MODELS["megabyte"] = MODELS["blt"] | PLAIN | {"pooled_bytes": 4, "encoder": STACK | {"layers": 0, "window": 16}}
MODELS["spacebyte"] = MODELS["blt"] | PLAIN
RULES = {"blt": "stride:k=4", "megabyte": "stride:k=4", "spacebyte": "space"}
WORDS = b"the of and a to in is you that it he was for on are as with his they at be this have from".split()


def documents(count: int = 12) -> list[bytes]:
    """Texts of different lengths made of common words, and bytes that are no UTF-8."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(3, 60, (count,), generator=generator).tolist()
    picks = [torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    return [b" ".join(WORDS[i] for i in pick) for pick in picks] + [bytes(range(256))]


@dataclass(frozen=True)
class Workplace:
    """A directory with a corpus, where runs are made and looked at."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> "Workplace":
        """A new one, with the corpus written."""
        for number, text in enumerate(documents()):
            (path / f"{number:02d}.txt").write_bytes(text)
        return cls(path)

    def fields(self, kind: str, *overrides: str) -> dict[str, Any]:
        """A training config of 10 steps as plain values."""
        fields: dict[str, Any] = {
            "model": MODELS[kind],
            "data": {
                "sources": [str(self.path / "*.txt")],
                "row_bytes": 64,
                "batch_rows": 2,
                "validation_fraction": 0.1,
            },
            "optim": {"lr": 1e-2, "warmup_steps": 3, "schedule_steps": 10},
            "trainer": {"max_steps": 10, "log_every": 1, "seed": 3},
        }
        if kind == "boundary":
            (self.path / "tokenizer.json").write_text(train_bpe(documents(), 300))
            fields["objective"] = {"kind": "token-boundary", "tokenizer": str(self.path / "tokenizer.json")}
        if kind in RULES:
            fields["patching"] = {"rule": RULES[kind]}
        return apply_overrides(fields, overrides)

    def config(self, kind: str, *overrides: str) -> TrainConfig:
        """A training config of 10 steps."""
        return parse(TrainConfig, self.fields(kind, *overrides), "test")

    def train(
        self, out: str, kind: str, *overrides: str, resume: bool = False, say: Callable[[str], None] | None = None
    ) -> Result:
        """Train into the directory `out` of the workplace; nothing is printed."""
        return train(self.config(kind, *overrides), self.path / out, resume=resume, say=say or (lambda line: None))

    def tensors(self, out: str) -> dict[str, torch.Tensor]:
        """Weights and the optimizer's state of a run, as they lie on the disk."""
        latest = self.path / out / "latest"
        state = {f"state.{key}": value for key, value in state_of(latest).items()}
        return state | load_file(latest / "model.safetensors")

    def losses(self, out: str) -> dict[int, tuple[float, float, float]]:
        """Loss, gradient norm and rate of every step."""
        rows = [row for row in read_metrics(self.path / out) if "loss" in row]
        assert len({row["step"] for row in rows}) == len(rows), "a step stands there twice"
        return {row["step"]: (row["loss"], row["grad_norm"], row["lr"]) for row in rows}

    def weights(self, out: str) -> dict[str, torch.Tensor]:
        """The trained model's weights by our names."""
        if is_token_model(self.path / out):
            return dict(load_token_model(self.path / out).model.state_dict())
        bundle = load_bundle(self.path / out)
        module = bundle.model if bundle.model is not None else bundle.scorer
        assert module is not None
        return dict(module.state_dict())


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a run would go on from."""
    reader = dcp.FileSystemReader(checkpoint / "state")
    found = reader.read_metadata().state_dict_metadata
    state = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in found.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every bit."""
    assert ours.keys() == theirs.keys() and ours
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
