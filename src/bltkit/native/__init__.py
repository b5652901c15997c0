"""The native backend: a model whose steps over a few positions run as compiled code, for decoding on a CPU.

Eager torch stays the reference. The second form of the layers is small (`kernels.cpp`), and the tests hold it to the
first over all shapes.
"""

from bltkit.native.backend import BACKENDS, Backend, accelerated, backend_of, on_backend, parse_backend
from bltkit.native.following import FollowingCopy
from bltkit.native.library import Unavailable

__all__ = [
    "BACKENDS",
    "Backend",
    "FollowingCopy",
    "Unavailable",
    "accelerated",
    "backend_of",
    "on_backend",
    "parse_backend",
]
