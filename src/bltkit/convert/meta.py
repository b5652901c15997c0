"""What Meta's two layouts have in common: the entropy model's folder, and the way from three JSON objects to a model.

A layout finds the model's own fields and tensors (`ModelPart`); the rest is the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bltkit.checkpoint import Bundle, build_modules, stored_parts
from bltkit.checkpoint.weights import INDEX, WEIGHTS, Weights
from bltkit.convert import meta_config
from bltkit.convert.companions import licences
from bltkit.convert.fields import Fields, fields_of, read_fields
from bltkit.convert.meta_names import meta_names, of_entropy_model
from bltkit.convert.pickles import read_pickle, write_pickle
from bltkit.convert.source_checkpoint import Counter, Source, stack_of
from bltkit.convert.stream import METADATA, Computed, Stack
from bltkit.model import BltConfig, EntropyConfig
from bltkit.patching import PatchingRule

PARAMS = "params.json"
ENTROPY = "entropy_model"
PICKLES = ("consolidated.pth", "consolidated_with_rope.pth")
"""Weights, in the order of preference: the second has tensors besides that the model computes by itself."""
RECORD = "converted_from"
"""Key of a checkpoint's record: the layout that it came from and the text of that layout's JSON files."""
PATCH_SIZE = 4.5
"""Bytes; nominal, written where no file says it: the threshold decides."""


@dataclass(frozen=True)
class TensorFile:
    """Tensors of one file, mapped, and the names of what else is in it."""

    path: Path
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()
    header: Mapping[str, str] | None = None
    """What the header of a single safetensors file says besides."""
    num_files: int = 1


@dataclass(frozen=True)
class ModelPart:
    """The BLT itself, without its entropy model, as one of Meta's layouts holds it."""

    layout: str
    folder: Path
    config: str
    """Name of the JSON file in the layout, as the record keeps it."""
    text: str
    root: Fields
    args: Fields
    weights: TensorFile


def read_tensors(folder: Path, counter: Counter) -> TensorFile:
    """The weights of a folder: safetensors, else `consolidated.pth`, else that with RoPE tables. Raises ValueError."""
    if not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        for name in PICKLES:
            path = folder / name
            if path.exists() or path.is_symlink():
                counter.expect(path.stat().st_size if path.is_file() else 0)
                content = read_pickle(path, counter.tell)
                return TensorFile(path, content.tensors, content.others)
        raise ValueError(f"{folder} holds no weights; expected {', '.join(PICKLES)} or {WEIGHTS}")
    with Weights(folder) as weights:
        return TensorFile(weights.origin, weights.tensors(), header=weights.metadata(), num_files=len(weights.paths()))


def find_entropy(folder: Path, entropy: Path | None) -> Path:
    """The folder of the entropy model: `entropy`, else the one inside of the model's folder or beside it.

    Raises ValueError where there is none.
    """
    if entropy is not None:
        if not (entropy / PARAMS).exists():
            raise ValueError(f"{entropy} holds no {PARAMS}: it is no entropy model in Meta's layout")
        return entropy
    places = [folder / ENTROPY, folder.resolve().parent / ENTROPY]
    for place in places:
        if (place / PARAMS).exists():
            return place
    raise ValueError(
        f"{folder} has no entropy model, neither {ENTROPY}/{PARAMS} in it nor beside it; fetch it, or name its folder "
        "with --entropy DIR"
    )


def read_meta(part: ModelPart, directory: Path, entropy: Path, counter: Counter) -> Source:
    """The checkpoint of a model and the entropy model in folder `entropy`, checked.

    directory: what the user named, where a licence may lie. Raises ValueError with one line that names file and field
    or tensor.
    """
    root, text = read_fields(entropy / PARAMS)
    shape, data = root.inside("entropy_model"), root.inside("data")
    patcher = data.inside("patcher_args")
    model, scorer, rule = (
        meta_config.read_model(part.args),
        meta_config.read_scorer(shape),
        meta_config.read_rule(patcher),
    )
    scores = read_tensors(entropy, counter)
    modules = build_modules(
        part.args.path, model, scorer,
        num_tensors=len(part.weights.tensors) + len(scores.tensors),
        table_rows=sum(len(tensor) for tensor in part.weights.tensors.values() if tensor.dim()),
    )  # fmt: skip
    files = {part.config: part.text, f"{ENTROPY}/{PARAMS}": text}
    weights = {"header": part.weights.header, "num_files": part.weights.num_files}
    bundle = Bundle(*modules, rule, {RECORD: {"layout": part.layout, "files": files, "weights": weights}})
    tensors, used = _stacks(bundle, part, scores, entropy / PARAMS)
    unused_fields = {
        str(part.root.path): (*part.root.unread(), *part.args.unread()),
        str(root.path): (*root.unread(), *data.unread(), *shape.unread(), *patcher.unread()),
    }
    unused_tensors = {
        str(file.path): (*(name for name in file.tensors if name not in used[file.path]), *file.others)
        for file in (part.weights, scores)
    }
    return Source(
        part.layout,
        bundle,
        tensors,
        licences(_licence_folders(directory, part.folder, entropy)),
        unused_tensors=_filled(unused_tensors),
        unused_fields=_filled(unused_fields),
    )


def _licence_folders(directory: Path, folder: Path, entropy: Path) -> list[Path]:
    """Where the terms of a download may lie: in what the user named, and around a model in a folder of its own."""
    inner = folder == directory and not (folder / "config.json").exists()
    return [directory, *([directory.resolve().parent] if inner else []), folder, entropy]


def write_texts(source: Source, config: str, section: str) -> dict[str, str]:
    """The JSON files of a layout by name: as they were read, where they still describe the checkpoint.

    config: the file of the model's own fields, which lie under `section`. Raises ValueError for a checkpoint that
    Meta's layouts cannot describe.
    """
    model, scorer, rule = _expressible(source.bundle)
    texts, wanted = _recorded(source.bundle.record), meta_config.settings_of(model, scorer, rule)
    names = (config, f"{ENTROPY}/{PARAMS}")
    try:
        model_file, params = (fields_of(Path(name), texts[name]) for name in names)
        present = meta_config.settings_of(
            meta_config.read_model(model_file.inside(section)),
            meta_config.read_scorer(params.inside("entropy_model")),
            meta_config.read_rule(params.inside("data").inside("patcher_args")),
        )
    except (KeyError, ValueError):  # another layout's, or nobody's
        model_file, params, present = Fields(Path(config), {}), Fields(Path(PARAMS), {}), None
    if present == wanted:
        return {name: texts[name] for name in names}
    data = _object(params.data, "data")
    patch_size = (source.bundle.mean_patch_bytes or (PATCH_SIZE, ""))[0]
    contents = (
        {**model_file.data, section: meta_config.write_model(model, _object(model_file.data, section))},
        {
            **params.data,
            "entropy_model": meta_config.write_scorer(scorer, _object(params.data, "entropy_model")),
            "data": {
                **data,
                "patcher_args": meta_config.write_rule(rule, patch_size, _object(data, "patcher_args")),
            },
        },
    )
    return {name: json.dumps(content, indent=2) + "\n" for name, content in zip(names, contents, strict=True)}


def write_entropy(directory: Path, source: Source, texts: Mapping[str, str], counter: Counter) -> None:
    """Write the entropy model's folder. Raises OSError."""
    folder = directory / ENTROPY
    folder.mkdir()
    (folder / PARAMS).write_bytes(texts[f"{ENTROPY}/{PARAMS}"].encode())
    tensors = meta_tensors(source, entropy=True)
    write_pickle(folder / PICKLES[0], tensors)
    counter.tell(sum(tensor.nbytes for tensor in tensors.values()))


def meta_tensors(source: Source, *, entropy: bool) -> dict[str, Tensor]:
    """The tensors of the entropy model's file, or of the model's, under Meta's names. Raises ValueError."""
    model, _, _ = _expressible(source.bundle)
    result: dict[str, Tensor] = {}
    for name, stack in source.tensors.items():
        assert not isinstance(stack, Computed)  # `convert` refuses forms for these layouts
        if of_entropy_model(name) == entropy:
            names = meta_names(name, model.ngrams.num_tables)
            tensors = stack if len(stack) == len(names) else stack[0].split(len(stack[0]) // len(names))
            result |= dict(zip(names, tensors, strict=True))
    return result


def layout_of(bundle: Bundle) -> str | None:
    """The layout of Meta's that a checkpoint was converted from, as its record says."""
    record = bundle.record.get(RECORD)
    layout = record.get("layout") if isinstance(record, Mapping) else None
    return layout if isinstance(layout, str) else None


def weights_written(bundle: Bundle) -> tuple[int, Mapping[str, str] | None]:
    """Number of safetensors files that a checkpoint was converted from, 0 if unknown, and what their headers said."""
    if layout_of(bundle) is None:
        return 0, METADATA
    record = _object(bundle.record[RECORD], "weights")
    number, header = record.get("num_files"), record.get("header", METADATA)
    texts = {key: str(value) for key, value in header.items()} if isinstance(header, Mapping) else None
    return number if isinstance(number, int) else 0, texts


def _expressible(bundle: Bundle) -> tuple[BltConfig, EntropyConfig, PatchingRule]:
    model, scorer, rule = bundle.model, bundle.scorer, bundle.rule
    config = getattr(scorer, "config", None)
    if model is None or type(config) is not EntropyConfig or rule is None:
        lacking = "BLT" if model is None else "entropy model" if type(config) is not EntropyConfig else "patching rule"
        raise ValueError(f"the checkpoint has no {lacking}, which Meta's layouts need; convert it to 'ours' only")
    return model.config, config, rule


def _recorded(record: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the JSON files that a checkpoint was converted from."""
    entry = record.get(RECORD)
    files = entry.get("files") if isinstance(entry, Mapping) else None
    items = files.items() if isinstance(files, Mapping) else ()
    return {name: text for name, text in items if isinstance(text, str)}


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _stacks(
    bundle: Bundle, part: ModelPart, scores: TensorFile, params: Path
) -> tuple[dict[str, Stack], dict[Path, set[str]]]:
    """Every tensor of our file as a stack of Meta's, and the names of those by file."""
    assert bundle.model is not None
    result: dict[str, Stack] = {}
    used: dict[Path, set[str]] = {part.weights.path: set(), scores.path: set()}
    for expected in (expected for _, parts in stored_parts(bundle.model, bundle.scorer) for expected in parts):
        names = meta_names(expected.name, bundle.model.config.ngrams.num_tables)
        file, config = (scores, params) if of_entropy_model(expected.name) else (part.weights, part.args.path)
        result[expected.name] = stack_of(file.tensors, names, expected.shape, file.path, config)
        used[file.path].update(names)
    return result, used


def _filled(lists: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {key: names for key, names in lists.items() if names}
