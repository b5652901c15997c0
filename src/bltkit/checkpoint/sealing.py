"""config.json and bltkit.json of a byte model's checkpoint: what the directory says about the weights in it.

What Hugging Face's format cannot say is written under another model_type, so that transformers refuses it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from bltkit.checkpoint import hf_config
from bltkit.checkpoint.byte_tokenizer import tokenizer_files
from bltkit.checkpoint.held import Bundle
from bltkit.checkpoint.manifest import FORMAT, MANIFEST, FileEntry, Manifest, ScorerModule, scorer_config
from bltkit.checkpoint.names import ROUNDED, is_hugging_face
from bltkit.files import sealed
from bltkit.model.quantize import WeightForm

CONFIG = "config.json"
OWN_TYPE = "bltkit"
"""model_type of what Hugging Face's format cannot say; of a scorer alone, with `-KIND` behind it."""


def seal(
    directory: Path,
    bundle: Bundle,
    files: Mapping[str, FileEntry],
    dtype: str,
    *,
    config: bytes | None = None,
    weights: WeightForm | None = None,
) -> None:
    """Write config.json, the tokenizer and bltkit.json of a directory that holds the weights already.

    files: entries of everything that is there and belongs to the checkpoint. dtype: of the weights, as config.json
    names it. config: the content of config.json where it exists; it must describe the same model, and then a tokenizer
    exists too or is not wanted. weights: the form in which the large matrices are stored. Raises OSError.
    """
    manifest = manifest_of(bundle, weights)
    contents = {} if config is not None else described(bundle, dtype, weights)
    if config is not None:
        contents[CONFIG] = config
    for name in contents.keys() & files.keys():
        del contents[name]
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    entries = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in contents.items()
    }
    (directory / MANIFEST).write_bytes(json_bytes(manifest.replace(files={**files, **entries})))


def described(bundle: Bundle, dtype: str, weights: WeightForm | None = None) -> dict[str, bytes]:
    """config.json and, of a BLT, the files of its tokenizer, by name. dtype, weights: of the weights, as for `seal`."""
    config = json_bytes(config_of(bundle, manifest_of(bundle, weights)) | {"dtype": dtype})
    return {CONFIG: config} | (tokenizer_files() if bundle.model is not None else {})


def manifest_of(bundle: Bundle, weights: WeightForm | None = None) -> Manifest:
    """The content of bltkit.json, without files. weights: the form in which the large matrices are stored."""
    model, scorer = bundle.model, bundle.scorer
    return Manifest(
        format=2 if weights is None else FORMAT,
        bltkit=version("bltkit"),
        kind="blt" if model is not None else scorer_config(cast(ScorerModule, scorer)).kind,
        rule=cast(Any, bundle.rule),
        model=None if model is None else model.config,
        scorer=None if scorer is None else scorer_config(scorer),
        record=bundle.record,
        files={},
        weights=weights,
    )


def json_bytes(value: Manifest | dict[str, Any]) -> bytes:
    """A file's content; a manifest's is sealed."""
    if isinstance(value, Manifest):
        # pydantic writes NaN as null: a run that diverged can still be saved.
        absent = {"digest"} | ({"weights"} if value.weights is None else set())
        value = sealed(json.loads(value.model_dump_json(exclude=absent)))
    return (json.dumps(value, indent=2) + "\n").encode()


def config_of(bundle: Bundle, manifest: Manifest) -> dict[str, Any]:
    """The content of config.json: Hugging Face's where that format can say what the bundle is."""
    reason = unreadable(bundle, manifest.weights)
    if reason is None:
        assert manifest.model is not None
        return hf_config.write_config(manifest.model, cast(Any, manifest.scorer), cast(Any, bundle.rule))
    return _refused_config(OWN_TYPE if bundle.model is not None else f"{OWN_TYPE}-{manifest.kind}", reason)


def unreadable(bundle: Bundle, weights: str | None = None) -> str | None:
    """The part of a bundle that keeps transformers from loading it, as a noun; None where transformers can.

    weights: the form in which the large matrices are stored.
    """
    model, scorer = bundle.model, bundle.scorer
    reason = hf_config.obstacle(
        None if model is None else model.config, None if scorer is None else scorer_config(scorer), bundle.rule
    )
    names = () if model is None else model.state_dict()
    if reason is None and weights in ROUNDED:
        return f"the form {weights!r} of its weights"
    return reason or next((f"tensor {name}" for name in names if not is_hugging_face(name)), None)


def warn_unreadable(directory: str | Path, bundle: Bundle, weights: str | None = None) -> None:
    """Log one line where transformers cannot load a BLT that was saved in `directory`, with the reason.

    weights: the form in which the large matrices are stored.
    """
    reason = None if bundle.model is None else unreadable(bundle, weights)
    if reason is not None:
        logging.getLogger(__name__).warning(
            "%s: transformers cannot load this checkpoint: %s has no place in its format; bltkit loads it",
            directory,
            reason,
        )


def _refused_config(model_type: str, reason: str) -> dict[str, Any]:
    # transformers' Auto classes refuse the model_type. BltForCausalLM.from_pretrained only warns about it, and would go
    # on with the 1B's default shape: a field of another type stops it, and its message quotes the value. A sub-config
    # that is no object stops versions that do not check types.
    sentence = (
        f"This checkpoint needs bltkit: {reason} has no place in transformers' format. "
        "Install bltkit and load it with bltkit.load."
    )
    return {"model_type": model_type, "vocab_size": sentence, "encoder_config": f"see {MANIFEST}"}
