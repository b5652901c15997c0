"""Configurations of our own model types: what bltkit.json describes, as a `PreTrainedConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from bltkit.checkpoint import MANIFEST, resolve_model
from bltkit.checkpoint.intact import read_manifest
from bltkit.checkpoint.manifest import Manifest
from bltkit.checkpoint.sealing import OWN_TYPE
from bltkit.config import parse
from bltkit.model import BltConfig, EntropyConfig
from bltkit.vocab import BOS, EOS, PAD, VOCAB_SIZE

_DESCRIBED = ("format", "bltkit", "kind", "rule", "model", "scorer", "record")


def checkpoint_directory(name: str | Path) -> Path:
    """The directory of a checkpoint: a path, `bltkit:NAME`, or OWNER/NAME on the hub. Raises ValueError."""
    text = str(name)
    if ":" in text or Path(text).expanduser().is_dir():
        return resolve_model(text)
    return resolve_model(f"hf:{text}" if text.count("/") == 1 and text[0] not in "./~" else text)


class BltkitConfig(PreTrainedConfig):  # type: ignore[misc]
    """A BLT that transformers' own format cannot express: any patching rule, shape and scorer of ours.

    description: the content of bltkit.json, but for its files; read from there by `from_pretrained`.
    """

    model_type = OWN_TYPE

    def __init__(self, description: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.description = dict(description) if description else {}
        kwargs.pop("encoder_config", None)  # what stops BltForCausalLM from reading our file
        kwargs.setdefault("vocab_size", VOCAB_SIZE)
        ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
        super().__init__(**{**ids, "tie_word_embeddings": False, **self._lengths(), **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; where the dictionary is a checkpoint's config.json, bltkit.json beside it is read."""
        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path")
        if isinstance(config_dict.get("vocab_size"), str):  # the sentence that BltForCausalLM quotes
            config_dict = {key: value for key, value in config_dict.items() if key != "vocab_size"}
        if not config_dict.get("description") and name:
            config_dict = {**config_dict, "description": described_in(checkpoint_directory(name))}
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        kwargs["name_or_path"] = str(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def manifest(self) -> Manifest:
        """The description as a value. Raises ValueError where there is none, or one of another kind of model."""
        if not self.description:
            raise ValueError(f"the config describes no model; load it from a checkpoint with its {MANIFEST}")
        manifest: Manifest = parse(Manifest, {**self.description, "files": {}}, "config.description")
        expected = "blt" if self.model_type == OWN_TYPE else self.model_type.removeprefix(f"{OWN_TYPE}-")
        if manifest.kind != expected:
            raise ValueError(
                f"config.description: kind is {manifest.kind!r}; expected {expected!r} for {self.model_type}"
            )
        return manifest

    def _lengths(self) -> dict[str, Any]:
        if not self.description:
            return {}
        manifest = self.manifest
        shape = manifest.model if manifest.model is not None else manifest.scorer
        if isinstance(shape, BltConfig):
            return {"max_position_embeddings": shape.max_positions, "hidden_size": shape.latent.width}
        if isinstance(shape, EntropyConfig):
            return {"max_position_embeddings": shape.max_positions, "hidden_size": shape.width}
        return {}


class BltkitEntropyConfig(BltkitConfig):
    """An entropy model alone."""

    model_type = f"{OWN_TYPE}-entropy"

    def __init__(self, description: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        # transformers makes a dataclass of a config without a constructor of its own.
        super().__init__(description, **kwargs)


def described_in(directory: Path) -> dict[str, Any]:
    """What bltkit.json of a checkpoint says, but for its files. Raises ValueError where it is missing or damaged."""
    manifest = read_manifest(directory)
    return {key: value for key, value in manifest.items() if key in _DESCRIBED}
