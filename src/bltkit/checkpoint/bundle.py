"""Saving and loading what belongs together: a model, the scorer that its patching rule listens to, and the rule.

Modules are built on the meta device and get the file's tensors assigned: nothing is initialised to be overwritten.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bltkit.checkpoint import hf_config
from bltkit.checkpoint import token_checkpoint as token_model
from bltkit.checkpoint.atomic import atomic_directory, write_atomic
from bltkit.checkpoint.card import write_card
from bltkit.checkpoint.card_mark import CARD
from bltkit.checkpoint.checksums import POSITION, update_checksums
from bltkit.checkpoint.chosen_forms import choose_forms, needed_bytes
from bltkit.checkpoint.held import Bundle
from bltkit.checkpoint.intact import check_contents, check_names, check_sizes, entry_of, read_manifest
from bltkit.checkpoint.licences import read_licences
from bltkit.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    ScorerConfig,
    ScorerModule,
    build_scorer,
    refuse_coerced,
)
from bltkit.checkpoint.names import ROUNDED, Room, rooms, stored_parts
from bltkit.checkpoint.placement import DeviceMap, place
from bltkit.checkpoint.reader import TABLES, Reader
from bltkit.checkpoint.sealing import CONFIG, OWN_TYPE, config_of, json_bytes, manifest_of, seal
from bltkit.checkpoint.stored import DTYPES, parse_stored, rounded_matrix, stored_matrices
from bltkit.checkpoint.weights import INDEX, Weights, read_json, weight_files, write_weights
from bltkit.config import parse
from bltkit.files import check_seal
from bltkit.model import Blt, BltConfig, StackConfig
from bltkit.model.device_stages import put_seams
from bltkit.model.fused_linear import Linear
from bltkit.model.quantize import KINDS, Matrix, WeightForm
from bltkit.patching import PatchingRule

MAX_SHARD_BYTES = 5_000_000_000


def save_bundle(
    path: str | Path,
    bundle: Bundle,
    *,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a checkpoint directory with a model card, whole or not at all; returns its path.

    dtype: of all weights in the files, the scorer's too; as they are when absent. An entropy model in bfloat16 places
    some patches elsewhere than in float32.
    weights: in place of `dtype`, a form in which the large matrices of the BLT are stored, to be loaded as they are:
    bf16, fp16, int8, int4 or fp32; of a scorer where it stands alone.
    overwrite: replace an existing checkpoint directory (never one that holds anything else).

    Raises ValueError for a bad target or an empty bundle, OSError if writing fails; the target is then as it was.
    """
    with atomic_directory(path, overwrite=overwrite) as directory:
        write_bundle(directory, bundle, dtype=dtype, weights=weights, max_shard_bytes=max_shard_bytes)
        write_card(directory, bundle, weights)
    return Path(path)


def write_bundle(
    directory: Path,
    bundle: Bundle,
    *,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the files of a checkpoint into an existing directory; `save_bundle` without its safety and without a card.

    For callers that put further files beside them, inside an `atomic_directory` of their own.
    """
    model, scorer = bundle.model, bundle.scorer
    if model is None and scorer is None:
        raise ValueError("nothing to save: the bundle holds neither a model nor a scorer")
    form = None if weights is None else parse_stored(weights)
    if form is not None and dtype is not None:
        raise ValueError(f"dtype = {dtype} and weights = {weights!r}: give one of them")
    tensors = dict(_split(model, scorer))
    if form is not None:
        _put_into_form(tensors, next(rooms(model, scorer)), form)
    files = write_weights(directory, tensors, dtype, max_shard_bytes)
    for name, content in bundle.licences.items():
        (directory / name).write_bytes(content)
    numbers = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    stored = dtype or reduce(torch.promote_types, numbers)
    entries = {file.name: entry_of(file) for file in (*files, *(directory / name for name in bundle.licences))}
    kept = None if form == "fp32" else form
    seal(directory, bundle, entries, str(stored).removeprefix("torch."), weights=kept)
    for file in files:  # safetensors lets only the owner read its files, whatever the umask says
        shutil.copymode(directory / CONFIG, file)


def load_bundle(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    verify: bool = False,
    weights: str | None = None,
    scorer_weights: str | None = None,
    device_map: DeviceMap | None = None,
) -> Bundle:
    """Read a checkpoint directory of ours or of Hugging Face's (documents off, empty record); symlinks are followed.

    dtype: of all parameters, the scorer's too; when absent float32 on the CPU and the files' own elsewhere. Weights
    on the CPU whose dtype is the file's stay in its memory map as far as they are stored in one piece: fast to load,
    read as they are used, and copied page by page when written to. So do, when `dtype` is absent, n-gram tables of 16
    bits, most of a large model: what is looked up of them is computed with in float32. To train the tables say
    torch.float32.
    device_map: in place of `device`, one for each part of a BLT; inference only. When `dtype` is absent, weights are
    float32 if all layers are on the CPU, else the files' own; n-gram tables of 16 bits on the CPU stay in the file.
    verify: compare every file with its sha256 in bltkit.json first, which reads the weights whole. Without it only the
    weights' sizes are compared, bltkit.json with its own digest and config.json with what bltkit.json describes: a bit
    that flips inside of the weights is found by `verify` or `blt check` alone.
    weights: form of the large matrices (`model/quantize.py`), made of the file tensor by tensor; the model is then for
    inference only. None: the form that is stored, else fp32; on the CPU, where fp32 takes more than 2 GiB and the file
    holds 16 bits, these, which a line on stderr says. Not together with `dtype`.
    scorer_weights: form of a BLT's scorer; None: as `weights` where that rounds nothing, else what the file holds.

    Raises ValueError with one line that names the file or tensor, what was expected and what was found; also for
    weights that do not fit into memory, before they are read.
    """
    if dtype is not None and (weights is not None or scorer_weights is not None):
        raise ValueError(f"dtype = {dtype} and weights = {weights or scorer_weights!r}: give one of them")
    directory, device = Path(path), torch.device(device)
    if not directory.exists():
        raise ValueError(f"{directory} does not exist; expected a checkpoint directory")
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file; expected the checkpoint directory that holds it")
    found = _describe(directory)
    check_sizes(directory, {name: entry for name, entry in found.files.items() if _is_read(name)})
    if verify:
        _verify(directory, found.files)
    tables_on_cpu = device.type == "cpu" if device_map is None else device_map.tables == "cpu"
    keep_tables, by_default = dtype is None and tables_on_cpu, dtype is None and device.type == "cpu"
    if device_map is not None:
        device = device_map.first
        by_default = by_default and device_map.on_cpu
    if by_default or weights is not None:
        dtype = torch.float32
    with Weights(directory, found.files) as files:
        model, scorer = _modules(directory, found, files)
        several = list(rooms(model, scorer))
        reader = Reader(files, found.encoder_cross, found.tied, found.weights, dtype, device, keep_tables)
        reader.refuse_unexpected(several)
        free = None if device_map is None else 2**62  # placing compares with what is free on each device
        forms = choose_forms(directory, reader, several, weights, scorer_weights, by_default=by_default, free=free)
        placement = None
        if device_map is not None:
            placement = place(device_map, several, forms, dtype.itemsize if dtype else files.itemsize, keep_tables)
            reader = replace(reader, device=placement.local, device_of=placement.device_of)
        for room in several:
            reader.fill(room, forms.scorer if room.module is scorer and model is not None else forms.model)
    if placement is not None and model is not None:
        put_seams(model, placement.layers)
    return Bundle(model, scorer, found.rule, found.record, read_licences(directory))


@dataclass(frozen=True)
class Skeleton:
    """A checkpoint's modules without their weights, and what is known of these before they are read."""

    model: Blt | None
    """On the meta device, as `scorer` is."""
    scorer: ScorerModule | None
    stored: WeightForm | None
    """The form in which the checkpoint stores its matrices."""
    file_form: WeightForm
    """The form that holds the file's matrices in its own dtype."""
    _rooms: Sequence[Room]
    _reader: Reader

    def needed_bytes(self, form: WeightForm) -> float:
        """Memory that all weights take in a form, n-gram tables left out."""
        return needed_bytes(self._rooms, form)

    def read(self, linear: Linear) -> Linear:
        """One of the modules' matrices with its weights, in fp32."""
        return self._reader.read_matrix(self._rooms, linear)


@contextmanager
def skeleton(directory: Path) -> Iterator[Skeleton]:
    """Open a checkpoint without loading it. Raises ValueError as `load_bundle` does."""
    found = _describe(directory)
    check_sizes(directory, {name: entry for name, entry in found.files.items() if _is_read(name)})
    with Weights(directory, found.files) as files:
        model, scorer = _modules(directory, found, files)
        several = list(rooms(model, scorer))
        device = torch.device("cpu")
        reader = Reader(files, found.encoder_cross, found.tied, found.weights, torch.float32, device, False)
        yield Skeleton(model, scorer, found.weights, reader.file_form(several[0]), several, reader)


def _modules(directory: Path, found: "_Found", files: Weights) -> tuple[Blt | None, ScorerModule | None]:
    return build_modules(
        directory / CONFIG,
        found.model,
        found.scorer,
        num_tensors=len(files.names()),
        table_rows=files.rows(TABLES),
    )


def build_modules(
    path: Path, model: BltConfig | None, scorer: ScorerConfig | None, *, num_tensors: int, table_rows: int
) -> tuple[Blt | None, ScorerModule | None]:
    """Model and scorer on the meta device.

    path: the file that describes them, for messages. num_tensors, table_rows: how many tensors the weights hold, and
    how many rows of n-gram tables. Raises ValueError for a description that no model can be built of.
    """
    _refuse_implausible(path, model, scorer, num_tensors, table_rows)
    try:
        with torch.device("meta"):
            modules = None if model is None else Blt(model), None if scorer is None else build_scorer(scorer)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # sizes that overflow
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: no model can be built of it ({first})") from None
    return modules


def _refuse_implausible(
    path: Path, model: BltConfig | None, scorer: ScorerConfig | None, num_tensors: int, table_rows: int
) -> None:
    """Raises ValueError for counts that the weights rule out: building modules of them would take hours or all memory.

    Wrong widths are left to the comparison of shapes, as a matrix on the meta device costs nothing.
    """
    stacks = [] if model is None else [model.encoder, model.latent, model.decoder]
    stacks += [scorer] if isinstance(scorer, StackConfig) else []
    layers = sum(stack.layers for stack in stacks)
    if layers > num_tensors:
        raise ValueError(f"{path} describes {layers} layers, but the weights hold {num_tensors} tensors")
    if model is None or not model.ngrams.sizes:
        return
    ngrams = model.ngrams
    if ngrams.num_tables > table_rows or max(ngrams.sizes) > _LONGEST_NGRAM:
        raise ValueError(
            f"{path} describes {ngrams.num_tables} n-gram tables, of up to {max(ngrams.sizes)} bytes; expected at most "
            f"the {table_rows} rows that the weights hold, and {_LONGEST_NGRAM} bytes"
        )


def store_rule(path: str | Path, rule: PatchingRule, record: Mapping[str, Any] | None = None) -> None:
    """Make `rule` the rule of an existing checkpoint and add to its record; its weights stay as they are.

    The two JSON files are each replaced whole; where the directory is a training checkpoint, its list of checksums is
    updated. A model card that nobody has edited is written again.
    Raises ValueError as `load_bundle` does, OSError if writing fails.
    """
    directory = Path(path)
    if (directory / MANIFEST).is_symlink():  # a run's, whose `latest` may move meanwhile; or the hub's cache
        real = Path(os.path.realpath(directory / MANIFEST)).parent
        directory = real if (real / CONFIG).exists() and (real / MANIFEST).exists() else directory
    found, bundle = _describe(directory), load_bundle(directory, device="meta")
    if found.encoder_cross or found.tied:
        raise ValueError(
            f"{directory} stores its weights in a way that only a plain Hugging Face directory can; "
            "load it and save it elsewhere first"
        )
    changed = replace(bundle, rule=rule, record=bundle.record | dict(record or {}))
    manifest = manifest_of(changed, found.weights)
    config = json_bytes(config_of(changed, manifest) | {"dtype": read_json(directory / CONFIG).get("dtype")})
    # Weights that nobody has listed are listed as they are now.
    weights = {file.name: found.files.get(file.name) or entry_of(file) for file in weight_files(directory)}
    files = {**found.files, **weights}
    files[CONFIG] = FileEntry(sha256=hashlib.sha256(config).hexdigest(), bytes=len(config))
    write_atomic(directory / MANIFEST, json_bytes(manifest.replace(files=files)))
    write_atomic(directory / CONFIG, config)
    update_checksums(directory, (MANIFEST, CONFIG))
    for folder in dict.fromkeys((Path(path), directory)):
        if (folder / CARD).is_file():
            write_card(folder, changed, found.weights)


@dataclass(frozen=True)
class _Found:
    """What a directory describes, whoever wrote it."""

    model: BltConfig | None
    scorer: ScorerConfig | None
    rule: PatchingRule | None
    record: dict[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    encoder_cross: int = 0
    tied: bool = False
    weights: WeightForm | None = None


def _describe(directory: Path) -> _Found:
    path, own = directory / CONFIG, directory / MANIFEST
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
    if own.exists() or own.is_symlink():
        return _described_by_manifest(directory, config)
    if model_type == token_model.MODEL_TYPE:
        raise ValueError(_token_model(directory))
    if isinstance(model_type, str) and model_type.startswith(OWN_TYPE):
        raise ValueError(f"{own} is missing, which a model of type {model_type!r} is described in")
    if model_type != hf_config.MODEL_TYPE:
        hint = f"; it is in Meta's layout: `blt convert {directory} DIR` makes a checkpoint of it" * ("args" in config)
        raise ValueError(f"{path}: model_type is {model_type!r}; expected 'blt'{hint}")
    described = hf_config.read_config(config, path)
    return _Found(
        described.model,
        described.scorer,
        described.rule,
        encoder_cross=described.encoder_cross,
        tied=described.tied,
    )


def _meta_file(directory: Path) -> Path | None:
    """A params.json of Meta's, in the directory or in a folder of it."""
    return next((path for place in ("params.json", "*/params.json") for path in directory.glob(place)), None)


def _described_by_manifest(directory: Path, config: dict[str, Any]) -> _Found:
    """Raises ValueError where bltkit.json and config.json do not describe the same model."""
    path, own = directory / CONFIG, directory / MANIFEST
    data, model_type = read_manifest(directory), config.get("model_type")
    if model_type == token_model.MODEL_TYPE and data.get("kind") == token_model.KIND:
        raise ValueError(_token_model(directory))
    manifest: Manifest = parse(Manifest, data, str(own))
    check_seal(data, str(own))
    check_names(directory, manifest.files)
    described = {key: value for key, value in data.items() if key in ("format", "rule", "model", "scorer")}
    refuse_coerced(described, manifest.model_dump(mode="json"), str(own))
    kind = "blt" if manifest.model is not None else getattr(manifest.scorer, "kind", None)
    if kind is None or manifest.kind != kind:
        raise ValueError(f"{own}: kind is {manifest.kind!r}, but it describes {kind or 'no model'}; restore the file")
    possible = (hf_config.MODEL_TYPE, OWN_TYPE) if manifest.model is not None else (f"{OWN_TYPE}-{kind}",)
    if model_type not in possible:
        names = " or ".join(map(repr, possible))
        if model_type == hf_config.MODEL_TYPE:
            raise ValueError(f"{own} describes no model, but {path} does; the two do not belong together")
        raise ValueError(f"{path}: model_type is {model_type!r:.80}; expected {names}, which {own.name} describes")
    if model_type == hf_config.MODEL_TYPE:
        assert manifest.model is not None
        where = hf_config.difference(path, config, manifest.model, manifest.scorer, manifest.rule)
        if where is not None:
            raise ValueError(
                f"{path} and {own.name} disagree on {where}; make them agree, or remove {own.name} to load "
                "the directory as Hugging Face's"
            )
    return _Found(
        manifest.model, manifest.scorer, manifest.rule, manifest.record, manifest.files, weights=manifest.weights
    )


def _token_model(directory: Path) -> str:
    return (
        f"{directory} holds a token model (a Llama), not a byte model; evaluate it by "
        f"`blt eval --model token:{directory}`, or load it with transformers"
    )


_POSITIONS = (POSITION, f"latest/{POSITION}")
"""What a run is resumed from, in one of its checkpoints or in its directory."""
_LONGEST_NGRAM = 1024
"""Bytes; the paper's are 8 at most."""


def _split(model: Blt | None, scorer: ScorerModule | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file, as views of the modules' tensors."""
    for tensor, parts in stored_parts(model, scorer):
        rows = [part.shape[0] for part in parts]
        yield from zip((part.name for part in parts), tensor.split(rows), strict=True)


def _put_into_form(tensors: dict[str, Tensor], room: Room, form: WeightForm) -> None:
    """Put the large matrices of a module, which are among the file's tensors, into a form."""
    for base, parts, _ in stored_matrices(room, form):
        matrix = Matrix([tensors[part.name].detach() for part in parts], torch.device("cpu"))
        if form in ROUNDED:
            for part in parts:
                del tensors[part.name]
            tensors |= rounded_matrix(base, matrix, form)
        elif form == "fp32" or KINDS[form].fits(matrix):
            tensors |= {part.name: tensors[part.name].to(DTYPES[form]) for part in parts}


def _verify(directory: Path, files: Mapping[str, FileEntry]) -> None:
    if not files:
        logging.getLogger(__name__).warning("%s has no bltkit.json: its files cannot be verified", directory)
    # A copy may lack what is not read: a licence, the tokenizer for transformers. `blt check` reports that.
    check_contents(
        directory, {name: entry for name, entry in files.items() if _is_read(name) or (directory / name).exists()}
    )


def _is_read(name: str) -> bool:
    """Does loading read the listed file `name`."""
    return name in (CONFIG, INDEX) or name.endswith(".safetensors")
