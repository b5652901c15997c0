"""`blt convert`: find the layout of the source, check all of it, then write another layout, whole or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bltkit.checkpoint import atomic_directory, resolve_model
from bltkit.checkpoint.atomic import refuse_existing
from bltkit.checkpoint.card import write_card
from bltkit.checkpoint.fetch import META_FILES
from bltkit.checkpoint.licences import is_licence
from bltkit.checkpoint.sealing import unreadable
from bltkit.checkpoint.stored import parse_stored
from bltkit.config import nearest
from bltkit.convert import hf, meta, meta_hub, meta_pth
from bltkit.convert.companions import copy_companions
from bltkit.convert.source_checkpoint import Counter, Progress, Source, Writer
from bltkit.convert.stored_forms import in_form
from bltkit.convert.stream import size_of
from bltkit.files import needs_space

TARGETS = ("ours", "hf", "meta")
"""Hugging Face's files with bltkit.json, or without it; or a layout of Meta's."""

_META: Mapping[str, Callable[[Source], Writer]] = {
    meta_pth.NAME: meta_pth.meta_pth_writer,
    meta_hub.NAME: meta_hub.meta_hub_writer,
}
_WRITERS = {"ours": hf.ours_writer, "hf": hf.hf_writer, **_META}
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class Conversion:
    """What was converted into what, and what was left out."""

    out: str
    source: str
    """Layout: `ours`, `hf`, `meta-pth` or `meta-hub`."""
    target: str
    num_tensors: int
    num_bytes: int
    """Of all tensors."""
    rule: str | None
    companions: tuple[str, ...]
    """Files that came along unchanged."""
    unused_tensors: Mapping[str, tuple[str, ...]]
    """Tensors of the source that the model does not have, by file."""
    unused_fields: Mapping[str, tuple[str, ...]]
    """Fields of the source that are not read, by file."""
    unreadable: str | None = None
    """The part of the checkpoint that keeps transformers from loading it."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        lists = {name: {file: list(names) for file, names in getattr(self, name).items()} for name in _LISTS}
        return {**vars(self), "companions": list(self.companions), **lists}

    def summary(self) -> str:
        """In lines for people; long lists are cut."""
        lines = [
            f"{self.out}: {self.source} -> {self.target}, {self.num_tensors} tensors, {self.num_bytes:,} bytes, "
            f"rule {self.rule or 'none'}"
        ]
        for name, what in _LISTS.items():
            for file, names in getattr(self, name).items():
                more = len(names) - _SHOWN_NAMES
                shown = ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more (--json lists all)" if more > 0 else "")
                lines.append(f"not used, {len(names)} {what} of {file}: {shown}")
        if self.unreadable is not None:
            lines.append(f"transformers cannot load it: {self.unreadable} has no place in its format")
        terms = [name for name in self.companions if is_licence(name)]
        lines.append(
            f"licence: {', '.join(terms)}" if terms else "licence: the source has no such file; its terms hold here too"
        )
        return "\n".join(lines)


_LISTS = {"unused_fields": "fields", "unused_tensors": "tensors"}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "ours",
    weights: str | None = None,
    entropy: str | Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint between Meta's layouts, Hugging Face's and ours; the weights keep dtype and every bit,
    unless a form is given.

    source: the folder that holds the model (and the entropy model, in it or beside it), or a MODEL as elsewhere.
    out: a directory that does not exist. to: `ours`; `hf`, the same without bltkit.json; `meta`, the layout that the
    checkpoint was converted from, by default params.json and consolidated.pth. weights: form in which the large
    matrices of the BLT are stored: bf16, fp16, fp32, and for `ours` int8 and int4. entropy: folder of the entropy
    model, where it lies elsewhere. progress: told (bytes done, bytes in all).

    Tensors go through in slices, so that memory does not depend on the model's size. Raises ValueError with one line
    that names file and field or tensor, OSError where writing fails; `out` then does not exist.
    """
    if to not in TARGETS:
        raise ValueError(f"to = {to!r}{nearest(str(to), TARGETS)}")
    form = None if weights is None else parse_stored(weights)
    refuse_existing(Path(out))
    counter = Counter(progress)
    checkpoint = _open(resolve_model(source, META_FILES), None if entropy is None else Path(entropy), counter)
    checkpoint = in_form(checkpoint, form, to)
    num_bytes = sum(map(size_of, checkpoint.tensors.values()))
    counter.expect(num_bytes)
    target = to
    if to == "meta":
        origin = meta.layout_of(checkpoint.bundle)
        target = origin if origin is not None and origin in _META else meta_pth.NAME
    write = _WRITERS[target](checkpoint)
    with atomic_directory(out) as directory, needs_space(Path(out), num_bytes):
        copied = copy_companions(checkpoint, directory, terms_only=to == "meta")
        write(directory, counter)
        if to != "meta":
            write_card(directory, checkpoint.bundle, checkpoint.weights)
    rule = checkpoint.bundle.rule
    return Conversion(
        out=str(out),
        source=checkpoint.layout,
        target=target,
        num_tensors=len(checkpoint.tensors),
        num_bytes=num_bytes,
        rule=None if rule is None else str(rule),
        companions=copied,
        unused_tensors=checkpoint.unused_tensors,
        unused_fields=checkpoint.unused_fields,
        unreadable=unreadable(checkpoint.bundle, checkpoint.weights) if to != "meta" else None,
    )


def _open(directory: Path, entropy: Path | None, counter: Counter) -> Source:
    if meta_hub.is_meta_hub(directory):
        return meta_hub.open_meta_hub(directory, entropy, counter)
    if hf.is_hf(directory):
        if entropy is not None:
            raise ValueError(f"{directory} holds its entropy model itself; leave out --entropy")
        return hf.open_hf(directory, counter)
    if meta_pth.is_meta_pth(directory):
        return meta_pth.open_meta_pth(directory, entropy, counter)
    raise ValueError(
        f"{directory} holds neither config.json nor params.json, nor a folder with params.json; name the folder that "
        "was downloaded"
    )
