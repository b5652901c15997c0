"""The model card: README.md beside a checkpoint, with the metadata that the Hugging Face hub reads.

A card follows from the checkpoint alone and needs no library. People edit cards: bltkit.json does not list them, and
one whose text does not match the digest in its last line is never replaced.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.checkpoint.atomic import write_atomic
from bltkit.checkpoint.card_mark import CARD, is_generated, marked
from bltkit.checkpoint.held import Bundle
from bltkit.checkpoint.licences import licence_files, licence_identifier
from bltkit.checkpoint.names import stored_parts
from bltkit.checkpoint.sealing import unreadable

BITS = "validation_bits_per_byte"
"""Key of the training record: bits per byte of held-out text."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHOWN_SOURCES = 20


def model_card(bundle: Bundle, licences: Sequence[Path] = (), weights: str | None = None) -> str:
    """The text of a card.

    licences: the checkpoint's files with terms of use. weights: the form in which its large matrices are stored.
    """
    reason = unreadable(bundle, weights)
    return marked("\n".join([*_metadata(bundle, licences, reason), "", *_body(bundle, licences, reason), ""]))


def write_card(directory: Path, bundle: Bundle, weights: str | None = None) -> bool:
    """Write the card of a checkpoint, unless there is the same one or one that was edited; returns whether it did.

    weights: as for `model_card`. Raises OSError.
    """
    path, content = directory / CARD, model_card(bundle, licence_files(directory), weights).encode()
    if path.exists() and (path.read_bytes() == content or not is_generated(path)):
        return False
    write_atomic(path, content)
    return True


def _metadata(bundle: Bundle, licences: Sequence[Path], reason: str | None) -> Iterator[str]:
    """The YAML block, keys in the hub's usual order. Strings are JSON's, which YAML contains."""
    identifier = licence_identifier([*licences])
    fields: dict[str, Any] = {"library_name": "bltkit"}
    if identifier is not None:
        fields["license"] = identifier
    if identifier == "other":
        fields["license_name"] = "see-" + licences[0].name.lower()
        fields["license_link"] = licences[0].name
    if bundle.model is not None:
        fields["pipeline_tag"] = "text-generation"
    fields["tags"] = ["bltkit", "blt", "byte-level", "tokenizer-free"]
    if reason is None:
        fields["tags"].append("transformers")
    if names := _hub_datasets(bundle.record):
        fields["datasets"] = names
    yield "---"
    for key, value in fields.items():
        if isinstance(value, list):
            yield f"{key}:"
            yield from (f"- {_scalar(item)}" for item in value)
        else:
            yield f"{key}: {_scalar(value)}"
    yield "---"


def _body(bundle: Bundle, licences: Sequence[Path], reason: str | None) -> Iterator[str]:
    record = bundle.record
    kind = "Byte Latent Transformer" if bundle.model is not None else "Model that places patches"
    yield f"# {kind}, {_parameters(bundle)} parameters"
    yield ""
    yield "It reads and writes bytes and needs no tokenizer ([BLT, arXiv 2412.09871](https://arxiv.org/abs/2412.09871))."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| bits per byte, held-out text | {_number(record.get(BITS), '.4f') or 'not recorded'} |"
    size = bundle.mean_patch_bytes
    yield f"| mean bytes per patch | {'not recorded' if size is None else f'{size[0]:.2f} ({_cell(size[1])})'} |"
    yield f"| patching rule | {'none' if bundle.rule is None else f'`{_cell(str(bundle.rule))}`'} |"
    for key, name in (("steps", "training steps"), ("bytes_seen", "bytes of text seen in training")):
        if number := _number(record.get(key), ",.0f"):
            yield f"| {name} | {number} |"
    yield f"| licence | {', '.join(f'[{path.name}]({path.name})' for path in licences) or 'not stated'} |"
    yield f"| transformers | {'loads it' if reason is None else f'cannot load it: {_cell(reason)}'} |"
    yield ""
    yield "## Data"
    yield ""
    sources = list(_sources(record))
    yield from (f"- {name}{size}" for name, size in sources[:_SHOWN_SOURCES])
    if len(sources) > _SHOWN_SOURCES:
        yield f"- and {len(sources) - _SHOWN_SOURCES} more"
    if not sources:
        yield "Not recorded."
    yield ""
    yield "## How to load it"
    yield ""
    yield "DIRECTORY is this checkpoint's; `hf:OWNER/NAME` in its place fetches it from the hub."
    yield ""
    yield "```python"
    yield "import bltkit"
    yield ""
    yield 'lm = bltkit.load("DIRECTORY")'
    if bundle.model is None or bundle.rule is None:
        yield 'print(lm.score("Bytes."))'
    else:
        yield 'print(lm.generate("The ", max_bytes=64).text)'
    yield "```"
    yield ""
    if reason is None:
        yield "```python"
        yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
        yield ""
        yield 'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")'
        yield 'model = AutoModelForCausalLM.from_pretrained("DIRECTORY")'
        yield "```"
    else:
        yield f"transformers cannot load the model: {reason} has no place in its format."
        if bundle.model is not None:
            yield "`AutoTokenizer` gives the ids of its texts all the same."


def _sources(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and size of each source of text; of a path the last part alone, since a card is for others."""
    datasets = _hub_datasets(record)
    for source in _objects(record.get("sources")):
        label = str(source.get("label") or "unnamed")
        if label.partition(":")[0] not in datasets:
            label = ", ".join(Path(part).name or part for part in label.split(", "))
        counts = [_number(source.get(key), ",") for key in ("num_documents", "num_bytes")]
        yield _cell(label), f": {counts[0]} documents, {counts[1]} bytes" if all(counts) else ""


def _hub_datasets(record: Mapping[str, Any]) -> list[str]:
    """The hub's data sets among the sources of a run's config, each once."""
    sources: Any = record.get("config")
    for key in ("data", "sources"):
        sources = sources.get(key) if isinstance(sources, Mapping) else None
    names = [str(source.get("name")) for source in _objects(sources) if source.get("kind") == "hub"]
    return [name for name in dict.fromkeys(names) if _HUB_NAME.fullmatch(name)]


def _objects(values: Any) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []


def _parameters(bundle: Bundle) -> str:
    count = sum(tensor.numel() for tensor, _ in stored_parts(bundle.model, bundle.scorer))
    return next(
        (f"{count / size:.1f} {unit}" for size, unit in ((1e9, "B"), (1e6, "M")) if count >= size), f"{count:,}"
    )


def _number(value: Any, form: str) -> str | None:
    """A number of a record in words; None for what is none, as records come from anywhere."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return format(value, form)


def _cell(text: str) -> str:
    """A text of one line, which neither ends a table's cell nor begins markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _scalar(value: str) -> str:
    """A string of YAML, in quotes where it needs them."""
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", value) and value.lower() not in ("true", "false", "null", "yes", "no")
    return value if plain else json.dumps(value, ensure_ascii=False)
