"""What holds for every test: shapes are checked, one thread, fixed seeds, GPU tests only on a GPU.

The import hook must be in place before anything of the package is imported, so it stands at this file's top:
pytest reads it before it collects a test module.
"""

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  the hook finds it by name

assert not any(name == "bltkit" or name.startswith("bltkit.") for name in sys.modules), (
    "bltkit was imported before the jaxtyping hook: its shape annotations would go unchecked"
)
# The packages that handle tensors; configs are checked by pydantic.
TENSOR_PACKAGES = [
    "vocab",
    "patches",
    "model",
    "native",
    "patching",
    "data",
    "checkpoint",
    "generate",
    "hf",
    "train",
    "annotate",
    "eval",
    "diagnostics",
    "api",
]
install_import_hook([f"bltkit.{name}" for name in TENSOR_PACKAGES], "tests.typecheck.check")

# Many small tensors, and several test processes a machine: a thread pool in each would only slow them down.
torch.set_num_threads(1)

# The first example of a test pays for imports and caches: no deadline.
_shared = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A fresh clone, CI and the same command once more say the same thing.
settings.register_profile("bltkit", _shared, derandomize=True)
# New examples: `make test SEED=n`, `make test-all`. With a seed they can be had again; no database of earlier failures
# stands between the seed and what is tried.
settings.register_profile("random", _shared, derandomize=False, database=None, print_blob=True)
settings.load_profile("bltkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--backend native` decodes natively in every session that a test starts."""
    parser.addoption("--backend", choices=["eager", "native"], default="eager")


@pytest.fixture(autouse=True, scope="session")
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.config.getoption("--backend") == "eager":
        yield
        return
    from tests.natively import natively

    with natively():
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch's own generator, and skip `gpu` tests on a machine without CUDA."""
    torch.manual_seed(0)
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
