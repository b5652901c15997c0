"""The training record in a checkpoint's bltkit.json, and the model card in a run's directory."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import is_token_model, load_bundle, store_rule
from bltkit.checkpoint.card import BITS, write_card
from bltkit.data import Corpus
from bltkit.data.sources.chat import chat_template
from bltkit.data.template import RECORD_KEY
from bltkit.tokens import Vocabulary
from bltkit.train.config import TrainConfig
from bltkit.train.patcher import Patcher
from bltkit.train.state import RunPosition


def training_record(
    config: TrainConfig,
    position: RunPosition,
    corpus: Corpus,
    patcher: Patcher,
    vocabulary: Vocabulary | None,
) -> dict[str, Any]:
    """The record of a checkpoint at `position`, as plain values.

    patcher: of a BLT. vocabulary: of a token model.
    """
    record = {
        "config": config.model_dump(mode="json", exclude_none=True),
        "row_bytes": config.data.row_bytes,
        "steps": position.step,
        "bytes_seen": position.text_bytes,
        "train_flops": train_flops(config, position),
        "corpus": corpus.fingerprint,
        "sources": [dataclasses.asdict(stats) for stats in corpus.stats],
        "seed": config.trainer.seed,
        "torch": torch.__version__,
    }
    if (template := chat_template(config.data.sources)) is not None:
        record[RECORD_KEY] = template.model_dump()
    record |= {key: patcher.record[key] for key in ("calibrated",) if key in patcher.record}
    if vocabulary is not None:
        record["tokenizer"] = {"sha256": vocabulary.sha256, "tokens": vocabulary.size}
    if position.num_patches:
        record["mean_patch_bytes"] = position.text_bytes / position.num_patches
    return record


def train_flops(config: TrainConfig, position: RunPosition) -> float:
    """Floating-point operations of a run up to `position`."""
    patch_bytes = position.text_bytes / position.num_patches if position.num_patches else 1.0
    return config.train_flops(position.text_bytes, patch_bytes)


def write_run_card(out: Path, final: Mapping[str, float]) -> None:
    """Write the model card of a run that is over, unless somebody has edited the one that is there. Raises OSError.

    final: the metrics of the last step, of which the newest checkpoint's record gets the bits per byte. They are
    measured when the checkpoint is on disk: a pass over held-out text must not come before the weights are saved.

    The card lies in the run's directory and not in a step's, whose files never change. Token models get none.
    """
    if is_token_model(out):
        return
    bundle = load_bundle(out, device="meta")
    if BITS in final and bundle.record.get(BITS) != final[BITS]:
        if bundle.rule is not None:
            store_rule(out, bundle.rule, {BITS: final[BITS]})
        bundle = replace(bundle, record=bundle.record | {BITS: final[BITS]})
    write_card(out, bundle)
