"""Which device each part of a model lies on: n-gram tables, what runs for every byte, and each global layer.

A `DeviceMap` is what a user asks for (`auto`, ranges of layers, a JSON file); a `Placement` is that map for one model,
with a device for every part, checked against the memory that is free. Layers on the CPU are computed there: in decoding
a layer reads all of its weights for one patch, which takes less time from the CPU's memory than over a bus.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint.chosen_forms import Forms, weight_sizes
from bltkit.checkpoint.names import Room
from bltkit.compute import device_of, free_memory
from bltkit.files import read_json_object
from bltkit.model import Blt
from bltkit.model.quantize import require_kernels

WHERE = "device_map"
SYNTAX = "auto, a JSON file, or ranges of layers such as layers=0-11:cuda:0,12-24:cpu"
RESERVED_SHARE = 0.1
RESERVED_BYTES = 512 * 2**20
"""Of free memory, what `auto` leaves for caches and for what a pass computes: this share, and at least so much."""

_UNKNOWN = 2**62
"""Free memory where the system does not say: nothing is refused then."""
TABLES = "embed.ngrams"
_LAYERS = "latent.stack.layers."
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")

Memory = Callable[[torch.device], int]
"""Free bytes of a device."""


@dataclass(frozen=True)
class PartSizes:
    """Bytes of a model's parts in memory.

    local: what runs for every byte, the entropy model included. tables: n-gram tables. layers: of each global layer.
    """

    local: int
    tables: int
    layers: tuple[int, ...]

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.local + self.tables + sum(self.layers)

    def __str__(self) -> str:
        """For messages."""
        tables = f", tables {_gb(self.tables)}" if self.tables else ""
        layer = max(self.layers, default=0)
        return f"{_gb(self.total)} (local parts {_gb(self.local)}{tables}, {len(self.layers)} layers of {_gb(layer)})"


@dataclass(frozen=True)
class Placement:
    """A device for each part of a model.

    layers: of each global layer. local: of all that runs for every byte. tables: of n-gram tables.
    """

    layers: tuple[torch.device, ...]
    local: torch.device
    tables: torch.device

    def device_of(self, name: str) -> torch.device:
        """Of a parameter of the model, by its name."""
        if name == TABLES:
            return self.tables
        return self.layers[_layer(name)] if name.startswith(_LAYERS) else self.local

    def needed(self, sizes: PartSizes) -> Mapping[torch.device, int]:
        """Bytes on each device."""
        needed: dict[torch.device, int] = defaultdict(int)
        for device, size in ((self.local, sizes.local), (self.tables, sizes.tables)):
            needed[device] += size
        for device, size in zip(self.layers, sizes.layers, strict=True):
            needed[device] += size
        return needed

    def check_fits(self, sizes: PartSizes, memory: Memory) -> None:
        """Raises ValueError that names the device, what it is to hold, what is free and what helps."""
        for device, size in self.needed(sizes).items():
            if device.type != "meta" and size > (free := memory(device)):
                raise ValueError(
                    f"{WHERE}: {device} is to hold {_gb(size)}, but has {_gb(free)} free; move layers elsewhere, "
                    "take smaller weights, or say auto"
                )


@dataclass(frozen=True)
class DeviceMap:
    """Where a user wants the parts of a model.

    layers: ranges (first, last, device), both inclusive; empty leaves everything to the memory that is free.
    local: of what runs for every byte; by default the first layer's device. tables: of n-gram tables.
    """

    layers: tuple[tuple[int, int, str], ...] = ()
    local: str | None = None
    tables: str = "cpu"

    @classmethod
    def parse(cls, text: "str | Path | DeviceMap") -> "DeviceMap":
        """`auto`, the name of a JSON file (`*.json`), or `layers=0-11:cuda:0,12-24:cpu` with `local=` and `tables=`.

        A file holds {"layers": {"0-11": "cuda:0", "12-24": "cpu"}, "local": "cuda:0", "tables": "cpu"}, of which
        `local` and `tables` may be absent. Raises ValueError for anything else, and for devices that are not there.
        """
        if isinstance(text, DeviceMap):
            return text
        if text == "auto":
            return cls()
        if isinstance(text, Path) or text.endswith(".json"):
            path = Path(text)
            return cls._of_fields(read_json_object(path), f"{WHERE} = {path}")
        return cls._of_fields(_fields(text), f"{WHERE} = {text!r:.120}")

    @classmethod
    def _of_fields(cls, fields: Mapping[str, Any], where: str) -> "DeviceMap":
        unknown = sorted(set(fields) - {"layers", "local", "tables"})
        if unknown:
            raise ValueError(f"{where}: unknown part {unknown[0]!r}; the parts are layers, local and tables")
        layers = fields.get("layers")
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(f"{where}: no devices of layers; use {SYNTAX}")
        ranges = []
        for span, device in layers.items():
            match = _RANGE.fullmatch(span)
            if match is None or int(match[1]) > int(match[2] or match[1]):
                raise ValueError(f"{where}: {span!r} is no range of layers; write such as 0-11 or 12")
            ranges.append((int(match[1]), int(match[2] or match[1]), _device(device, where)))
        local, tables = fields.get("local"), fields.get("tables", "cpu")
        return cls(
            tuple(sorted(ranges)),
            None if local is None else _device(local, where),
            _device(tables, where),
        )

    @property
    def first(self) -> torch.device:
        """The device of local parts; with `auto` the one that is tried first."""
        if not self.layers:
            return usable_devices()[0]
        return torch.device(self.layers[0][2] if self.local is None else self.local)

    @property
    def on_cpu(self) -> bool:
        """Does everything that computes lie on the CPU."""
        if not self.layers:
            return usable_devices() == (torch.device("cpu"),)
        return {device for _, _, device in self.layers} | {self.local or "cpu"} == {"cpu"}

    def place(self, sizes: PartSizes, memory: Memory | None = None) -> Placement:
        """The placement of a model whose parts have these sizes. memory: by default what is free now.

        Raises ValueError for layers that are missing, named twice or not there, and where memory does not suffice.
        """
        memory = _free if memory is None else memory
        if not self.layers:
            return spread(sizes, usable_devices(), memory, torch.device(self.tables))
        devices: list[torch.device | None] = [None] * len(sizes.layers)
        for first, last, device in self.layers:
            if last >= len(devices):
                raise ValueError(f"{WHERE}: layers {first}-{last}, but the model has layers 0-{len(devices) - 1}")
            for layer in range(first, last + 1):
                if devices[layer] is not None:
                    raise ValueError(f"{WHERE}: layer {layer} is named twice")
                devices[layer] = torch.device(device)
        layers = tuple(device for device in devices if device is not None)
        if len(layers) < len(devices):
            raise ValueError(f"{WHERE}: layer {devices.index(None)} has no device; name layers 0-{len(devices) - 1}")
        local = layers[0] if self.local is None else torch.device(self.local)
        placement = Placement(layers, local, torch.device(self.tables))
        placement.check_fits(sizes, memory)
        return placement


def place(device_map: DeviceMap, rooms: Sequence[Room], forms: Forms, itemsize: int, tables_mapped: bool) -> Placement:
    """The placement of modules that hold no data yet.

    rooms: a BLT and its scorer. forms: of their large matrices. itemsize: bytes of any other number. tables_mapped:
    tables on the CPU are left in their file, where they are read as they are used: they count nothing.
    Raises ValueError where there is no BLT to place, for a form that a device has no kernels for, and as
    `DeviceMap.place` does.
    """
    model, *scorers = (room.module for room in rooms)
    if not isinstance(model, Blt):
        raise ValueError(f"{WHERE}: the checkpoint holds no BLT, only a model that places patches; use device")
    scorer_sizes = [size for scorer in scorers for size in weight_sizes(scorer, forms.scorer, itemsize).values()]
    sizes = part_sizes(weight_sizes(model, forms.model, itemsize), sum(scorer_sizes))
    placement = device_map.place(replace(sizes, tables=0) if tables_mapped else sizes)
    for device in (placement.local, *placement.layers):
        if device.type != "meta":
            require_kernels(forms.model, device)
    return placement


def part_sizes(weights: Mapping[str, int], scorer: int) -> PartSizes:
    """Sizes of the parts. weights: bytes of a model's parameters by their names. scorer: bytes of the scorer."""
    tables, local = 0, scorer
    layers: dict[int, int] = defaultdict(int)
    for name, size in weights.items():
        if name == TABLES:
            tables += size
        elif name.startswith(_LAYERS):
            layers[_layer(name)] += size
        else:
            local += size
    return PartSizes(local, tables, tuple(layers[layer] for layer in range(len(layers))))


def usable_devices() -> tuple[torch.device, ...]:
    """All devices that `auto` spreads a model over, the fastest first: GPUs in their order, then the CPU.

    A machine with MPS has one memory for both, so there it is MPS alone.
    """
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not gpus and torch.backends.mps.is_available():
        return (torch.device("mps"),)
    return (*gpus, torch.device("cpu"))


def spread(sizes: PartSizes, devices: Sequence[torch.device], memory: Memory, tables: torch.device) -> Placement:
    """Fill devices in their order, a part at a time: local parts first, then the layers in theirs.

    devices: fastest first. Neighbouring layers so stay together, and activations cross as few borders as can be.
    Raises ValueError that names the sizes, what is free and what helps.
    """
    left = {device: _unreserved(memory(device), device) for device in devices}
    left[tables] = left.get(tables, _unreserved(memory(tables), tables)) - sizes.tables

    def refuse(part: str) -> ValueError:
        free = ", ".join(f"{device} {_gb(memory(device))}" for device in devices)
        return ValueError(
            f"{WHERE} = auto: the model takes {sizes}, but free are {free} ({part} fits nowhere, a tenth stays for "
            "caches); take smaller weights, or free memory"
        )

    if sizes.tables and left[tables] < 0:
        raise refuse("what the tables take")
    local = next((device for device in devices if sizes.local <= left[device]), None)
    if local is None:
        raise refuse("what runs for every byte")
    left[local] -= sizes.local
    layers, at = [], 0
    for number, size in enumerate(sizes.layers):
        while at < len(devices) and size > left[devices[at]]:
            at += 1
        if at == len(devices):
            raise refuse(f"layer {number}")
        left[devices[at]] -= size
        layers.append(devices[at])
    return Placement(tuple(layers), local, tables)


def _free(device: torch.device) -> int:
    free = free_memory(device)
    return _UNKNOWN if free is None else free


def _unreserved(free: int, device: torch.device) -> int:
    return free - max(int(RESERVED_SHARE * free), RESERVED_BYTES if device.type != "cpu" else 0)


def _fields(text: str) -> Mapping[str, Any]:
    """`local=a,layers=0-1:b,2:c` as a JSON file would hold it. Raises ValueError."""
    fields: dict[str, Any] = {}
    name = None
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if equals:
            name = key.strip()
            if name in fields:
                raise ValueError(f"{WHERE} = {text!r:.120}: {name} is named twice")
        elif name != "layers":
            raise ValueError(f"{WHERE} = {text!r:.120}: {word.strip()!r} belongs to no part; use {SYNTAX}")
        else:
            value = word
        if name != "layers":
            fields[str(name)] = value.strip()
            continue
        span, _, device = value.strip().partition(":")
        layers = fields.setdefault("layers", {})
        if span in layers:
            raise ValueError(f"{WHERE} = {text!r:.120}: layers {span} are named twice")
        layers[span] = device
    return fields


def _device(name: Any, where: str) -> str:
    if not isinstance(name, str) or name == "auto":
        raise ValueError(f"{where}: {name!r} is no device; use cpu, cuda:N or mps")
    return str(device_of(name, where))


def _layer(name: str) -> int:
    return int(name.removeprefix(_LAYERS).partition(".")[0])


def _gb(size: int) -> str:
    """In the unit that shows two digits."""
    if size < 1e7:
        return f"{math.ceil(size / 1e3):,} kB"
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.1f} GB"


def described(model: Blt) -> Iterator[str]:
    """Parts of a model on each device, for people."""
    layers = [next(layer.parameters()).device for layer in model.latent.stack.layers]
    local = model.embed.bytes.weight.device
    tables = {name: weight.device for name, weight in model.named_parameters() if name == TABLES}
    for device in dict.fromkeys((local, *layers, *tables.values())):
        parts = ["local parts"] * (local == device) + ["n-gram tables"] * (device in tables.values())
        numbers = [layer for layer, place in enumerate(layers) if place == device]
        for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            span = [number for _, number in group]
            parts.append(f"layers {span[0]}-{span[-1]}" if len(span) > 1 else f"layer {span[0]}")
        yield f"{', '.join(parts)} on {device}"
