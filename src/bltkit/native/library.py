"""The compiled kernels: built once per machine with its C++ compiler, kept in the user's cache, called by ctypes.

There is no other dependency, and nothing of torch in the interface: a new torch needs no new library.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import POINTER, c_double, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

SOURCES = Path(__file__).with_name("kernels")

FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-w", "-fno-math-errno", "-fno-trapping-math")
"""Of any compiler that knows GCC's options; sums keep their order, and numbers that are not finite stay so."""

THREADED = ("-fopenmp",)
UNTHREADED = ("-fopenmp-simd",)
"""For compilers that come without OpenMP's library: one thread."""

COMPILERS = ("c++", "g++", "clang++")

PLAIN, FP16, BF16, INT8, INT4 = range(5)
"""How a `PanelMatrix` holds its numbers: in the type of the activations, in 16 bits, in 8 with a scale per output, or
in 4 with a scale and a zero per group of inputs."""


logger = logging.getLogger(__name__)


class Unavailable(RuntimeError):
    """There is no native library on this machine; the message says why and what helps."""


class PanelMatrix(ctypes.Structure):
    """A weight in panels of 64 outputs."""

    _fields_: ClassVar = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("form", c_int64),
        ("limit", c_double),
    ]


class LayerWeights(ctypes.Structure):
    """One transformer layer."""

    _fields_: ClassVar = [
        ("attention_norm", c_void_p),
        ("qkv", PanelMatrix),
        ("out", PanelMatrix),
        ("ffn_norm", c_void_p),
        ("gate_up", PanelMatrix),
        ("down", PanelMatrix),
    ]


class ReaderWeights(ctypes.Structure):
    """The query side of one cross-attention block."""

    _fields_: ClassVar = [
        ("norm", c_void_p),
        ("q", PanelMatrix),
        ("out", PanelMatrix),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("eps", c_double),
        ("gain", c_double),
    ]


class StackWeights(ctypes.Structure):
    """A stack of layers, and the cross-attention in front of its first ones."""

    _fields_: ClassVar = [
        *((name, c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ffn", "window")),
        ("eps", c_double),
        ("frequencies", c_void_p),
        ("layer", POINTER(LayerWeights)),
        ("readers", c_int64),
        ("reader", POINTER(ReaderWeights)),
    ]


class NgramTables(ctypes.Structure):
    """Embeddings of bytes and hashed n-grams."""

    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("bytes", "tables", "factors", "first")),
        *((name, c_int64) for name in ("number", "longest", "buckets", "width")),
        ("scale", c_double),
    ]


_ARGUMENTS: dict[str, list[Any]] = {
    "stack": [POINTER(StackWeights), c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int64],
    "linear": [POINTER(PanelMatrix), c_void_p, c_int64, c_void_p, c_int64],
    "norm": [c_void_p, c_void_p, c_int64, c_int64, c_double, c_void_p],
    "entropy": [c_void_p, c_int64, c_int64, c_void_p],
    "embed": [POINTER(NgramTables), c_void_p, c_int64, c_int64, c_void_p],
}
"""The library's functions, each of them for every dtype."""

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}


class Kernels:
    """The library's functions for activations of one dtype."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        loaded = ctypes.CDLL(str(path))

        def function(name: str) -> Callable[..., None]:
            exported: Any = getattr(loaded, f"{name}_{_SUFFIXES[dtype]}")
            exported.restype, exported.argtypes = None, _ARGUMENTS[name]
            return cast(Callable[..., None], exported)

        self.stack, self.linear = function("stack"), function("linear")
        self.norm, self.entropy, self.embed = function("norm"), function("entropy"), function("embed")


@lru_cache(maxsize=2)
def kernels(dtype: torch.dtype = torch.float32) -> Kernels:
    """The functions for float32 or float64, compiled where they are not in the cache yet (some seconds).

    Raises Unavailable.
    """
    compiler = _compiler()
    directory = cache_directory()
    path = directory / f"kernels-{_key(compiler)}.so"
    if not path.exists():
        logger.warning("compiling the native kernels for this machine, once; some seconds")
        _build(compiler, path)
    try:
        return Kernels(path, dtype)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{path} cannot be loaded ({error}); delete it to have it compiled again") from None


def cache_directory() -> Path:
    """Directory of compiled libraries: `bltkit` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "bltkit"


def _compiler() -> Path:
    named = os.environ.get("CXX")
    paths = [path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))]
    if not paths:
        looked = named or ", ".join(COMPILERS)
        raise Unavailable(f"no C++ compiler ({looked}); install one, such as g++, or name it in CXX")
    return Path(paths[0]).resolve()


def _key(compiler: Path) -> str:
    """A hash of all that the library depends on: source, options, compiler and the CPU's instructions."""
    state = compiler.stat()
    parts = [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.is_file()]
    parts.append(repr((FLAGS, THREADED, str(compiler), state.st_size, state.st_mtime_ns)).encode())
    parts.append(_instructions().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _instructions() -> str:
    """Of the CPU; `-march=native` means another code on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {flags}"


def _build(compiler: Path, path: Path) -> None:
    """Compile to a file of its own, then move it to its place: another process never sees half a library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            made = Path(work) / path.name
            errors = ""
            for threading in (THREADED, UNTHREADED):
                command = [str(compiler), *FLAGS, *threading, "-o", str(made), str(SOURCES / "kernels.cpp")]
                result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                if result.returncode == 0:
                    made.replace(path)
                    return
                errors = errors or result.stderr
    except OSError as error:
        raise Unavailable(f"{path.parent}: {error.strerror or error}; name another place in XDG_CACHE_HOME") from None
    first = next((line for line in errors.splitlines() if "error" in line), "no message")
    raise Unavailable(f"{compiler.name} does not compile the kernels ({first}); name another compiler in CXX")
