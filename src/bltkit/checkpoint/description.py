"""The description of a checkpoint directory: config.json and bltkit.json, read, compared and checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bltkit.checkpoint import hf_config
from bltkit.checkpoint import token_checkpoint as token_model
from bltkit.checkpoint.checksums import POSITION
from bltkit.checkpoint.intact import check_names, read_manifest
from bltkit.checkpoint.manifest import MANIFEST, FileEntry, Manifest, ScorerConfig, refuse_coerced
from bltkit.checkpoint.sealing import CONFIG, OWN_TYPE
from bltkit.checkpoint.weights import read_json
from bltkit.config import parse
from bltkit.files import check_seal
from bltkit.model import BltConfig
from bltkit.model.quantize import WeightForm
from bltkit.patching import PatchingRule

_POSITIONS = (POSITION, f"latest/{POSITION}")
"""What a run is resumed from, in one of its checkpoints or in its directory."""


@dataclass(frozen=True)
class Description:
    """The content of a checkpoint directory without its weights, whichever library wrote it."""

    model: BltConfig | None
    scorer: ScorerConfig | None
    rule: PatchingRule | None
    record: dict[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    encoder_cross: int = 0
    tied: bool = False
    weights: WeightForm | None = None


def describe(directory: Path) -> Description:
    """The description in config.json and, where it is there, bltkit.json; the weights are not read.

    Raises ValueError with one line that names the file and the remedy.
    """
    path, manifest_path = directory / CONFIG, directory / MANIFEST
    if not path.exists() and any((directory / name).exists() for name in _POSITIONS):
        raise ValueError(
            f"{directory} holds the state of a training run, but not yet a model (checkpoint.export = 'end'): go on to "
            "its end by `blt train ... --resume`, or lower trainer.max_steps to where it is to have the model of now"
        )
    if not os.path.lexists(path) and (params := _meta_file(directory)) is not None:
        raise ValueError(
            f"{directory} is in Meta's layout, as {params.relative_to(directory)} shows: `blt convert {directory} DIR` "
            "makes a checkpoint of it (name the model's folder, not the entropy model's)"
        )
    config = read_json(path)
    model_type = config.get("model_type")
    if manifest_path.exists() or manifest_path.is_symlink():
        return _described_by_manifest(directory, config)
    if model_type == token_model.MODEL_TYPE:
        raise ValueError(_token_model(directory))
    if isinstance(model_type, str) and model_type.startswith(OWN_TYPE):
        raise ValueError(f"{manifest_path} is missing, which a model of type {model_type!r} is described in")
    if model_type != hf_config.MODEL_TYPE:
        hint = f"; it is in Meta's layout: `blt convert {directory} DIR` makes a checkpoint of it" * ("args" in config)
        raise ValueError(f"{path}: model_type is {model_type!r}; expected 'blt'{hint}")
    described = hf_config.read_config(config, path)
    return Description(
        described.model,
        described.scorer,
        described.rule,
        encoder_cross=described.encoder_cross,
        tied=described.tied,
    )


def _meta_file(directory: Path) -> Path | None:
    """A params.json of Meta's, in the directory or in a folder of it."""
    return next((path for place in ("params.json", "*/params.json") for path in directory.glob(place)), None)


def _described_by_manifest(directory: Path, config: dict[str, Any]) -> Description:
    """Raises ValueError where bltkit.json and config.json do not describe the same model."""
    path, manifest_path = directory / CONFIG, directory / MANIFEST
    data, model_type = read_manifest(directory), config.get("model_type")
    if model_type == token_model.MODEL_TYPE and data.get("kind") == token_model.KIND:
        raise ValueError(_token_model(directory))
    manifest: Manifest = parse(Manifest, data, str(manifest_path))
    check_seal(data, str(manifest_path))
    check_names(directory, manifest.files)
    described = {key: value for key, value in data.items() if key in ("format", "rule", "model", "scorer")}
    refuse_coerced(described, manifest.model_dump(mode="json"), str(manifest_path))
    kind = "blt" if manifest.model is not None else getattr(manifest.scorer, "kind", None)
    if kind is None or manifest.kind != kind:
        raise ValueError(
            f"{manifest_path}: kind is {manifest.kind!r}, but it describes {kind or 'no model'}; restore the file"
        )
    possible = (hf_config.MODEL_TYPE, OWN_TYPE) if manifest.model is not None else (f"{OWN_TYPE}-{kind}",)
    if model_type not in possible:
        names = " or ".join(map(repr, possible))
        if model_type == hf_config.MODEL_TYPE:
            raise ValueError(f"{manifest_path} describes no model, but {path} does; the two do not belong together")
        raise ValueError(
            f"{path}: model_type is {model_type!r:.80}; expected {names}, which {manifest_path.name} describes"
        )
    if model_type == hf_config.MODEL_TYPE:
        assert manifest.model is not None
        where = hf_config.difference(path, config, manifest.model, manifest.scorer, manifest.rule)
        if where is not None:
            raise ValueError(
                f"{path} and {manifest_path.name} disagree on {where}; make them agree, or remove "
                f"{manifest_path.name} to load the directory as Hugging Face's"
            )
    return Description(
        manifest.model, manifest.scorer, manifest.rule, manifest.record, manifest.files, weights=manifest.weights
    )


def _token_model(directory: Path) -> str:
    return (
        f"{directory} holds a token model (a Llama), not a byte model; evaluate it by "
        f"`blt eval --model token:{directory}`, or load it with transformers"
    )
