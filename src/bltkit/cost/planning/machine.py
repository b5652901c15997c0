"""Devices by their data sheets, a mesh of them, and what share of the sheet a plan counts on."""

import re
from dataclasses import dataclass
from typing import Self

from bltkit.config import nearest

UTILIZATION = 0.4
"""Share of a device's peak that is assumed to be achieved where nobody says a rate."""
LINK_SHARE = 0.7
"""Share of a link's rate that a collective is assumed to achieve."""
USABLE = 0.9
"""Share of a device's memory that a plan may fill; the rest is the allocator's gaps, CUDA's and NCCL's own."""


@dataclass(frozen=True)
class Device:
    """A device by its data sheet."""

    peak_tflops: float
    """Dense bf16 products (fp32 for the CPU)."""
    memory_gb: float | None
    node_gb_per_s: float
    """From a device to the others of its node, one direction."""
    network_gb_per_s: float
    """From a device to other nodes: its share of the node's network."""


DEVICES: dict[str, Device] = {
    "a100": Device(312, 80, 300, 25),
    "h100": Device(989, 80, 450, 50),
    "h200": Device(989, 141, 450, 50),
    "b200": Device(2250, 180, 900, 50),
    # Two cores with AVX2, as the benchmarks of this repository have them.
    "cpu": Device(0.1, None, 10, 1),
}
"""SXM modules; one 200 Gb/s (A100) or 400 Gb/s network port for each device."""


@dataclass(frozen=True)
class Mesh:
    """Nodes and devices per node; one process for each device."""

    nodes: int
    per_node: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "NODESxDEVICES". Raises ValueError for anything else."""
        found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text.strip())
        if found is None:
            raise ValueError(f"--mesh {text}: write NODESxDEVICES, such as 8x8, both from 1 to 999999")
        return cls(int(found[1]), int(found[2]))

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.per_node


def device_named(name: str) -> Device:
    """One of `DEVICES`. Raises ValueError that names the nearest one."""
    if name not in DEVICES:
        raise ValueError(f"--device {name}{nearest(name, list(DEVICES))}")
    return DEVICES[name]
