"""What the machine does at best, measured within the run that it is compared with: a busy machine is slow for both.

Decoding reads weights in products with one row and can be no faster than these; reading a prompt and training are
bound by large products. All sets are larger than the caches, as a large model's weights are: one that fits in them
can read faster than this.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bltkit.bench.timing import timed
from bltkit.model.fused_linear import Linear
from bltkit.model.quantize import WeightForm, reform, weight_bytes

RUNS = 5


@dataclass(frozen=True)
class MachineRates:
    """Medians on one device, on as many threads as torch then had. GB are 1e9 bytes."""

    copy_gb_per_second: float
    """Of a copy between large buffers, what is read and what is written added up."""
    product_gb_per_second: Mapping[WeightForm, float]
    """Weights read by products with one row, by the weights' form, with the kernels that a model of that form uses."""
    matmul_gflops: float
    """fp32, large square matrices; a multiplication and an addition are two."""


@dataclass(frozen=True)
class RateSizes:
    """How much is moved and multiplied. Few bytes are only good for a test: they fit in the caches."""

    num_bytes: int
    """Of the copied buffer, and of the weights of each form."""
    width: int
    """Of the square weights: large enough for a call to take far longer than its dispatch."""
    matmul_width: int


CPU = RateSizes(num_bytes=2**27, width=2048, matmul_width=1024)
GPU = RateSizes(num_bytes=2**31, width=8192, matmul_width=8192)


@torch.inference_mode()
def machine_rates(
    device: torch.device, forms: Sequence[WeightForm] = ("fp32",), size: RateSizes | None = None
) -> MachineRates:
    """Measure; about a second for each form. size: by default `CPU` or `GPU`.

    Raises ValueError for a form that the machine has no kernels for.
    """
    size = size or (CPU if device.type == "cpu" else GPU)
    source = torch.ones(size.num_bytes // 4, device=device)  # written to: pages never touched would all be one page
    target = torch.empty_like(source)
    copy = _median(lambda: target.copy_(source), device)
    del source, target
    square = torch.ones(size.matmul_width, size.matmul_width, device=device)
    matmul = _median(lambda: square @ square, device)
    return MachineRates(
        copy_gb_per_second=2 * size.num_bytes / copy / 1e9,
        product_gb_per_second={form: _product_rate(form, device, size) for form in forms},
        matmul_gflops=2 * size.matmul_width**3 / matmul / 1e9,
    )


def _product_rate(form: WeightForm, device: torch.device, size: RateSizes) -> float:
    products = [_product(form, device, size.width)]
    num_bytes = weight_bytes(products[0])
    count = max(1, size.num_bytes // num_bytes)
    products += [_product(form, device, size.width) for _ in range(count - 1)]
    x = torch.ones(1, size.width, device=device)

    def sweep() -> None:
        for product in products:
            product(x)

    return count * num_bytes / _median(sweep, device) / 1e9


def _product(form: WeightForm, device: torch.device, width: int) -> nn.Module:
    linear = Linear(width, width).to(device)
    nn.init.ones_(linear.weight)
    return reform(nn.ModuleList([linear]), form, min_elements=1)[0]


def _median(run: Callable[[], object], device: torch.device) -> float:
    """Seconds; the first run is slow, and not counted."""
    run()
    return statistics.median(timed(run, device) for _ in range(RUNS))
