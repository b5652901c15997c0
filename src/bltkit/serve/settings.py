"""What the process that owns the model is started with."""

from dataclasses import dataclass, field

from bltkit.serve.limits import Limits


@dataclass(frozen=True)
class EngineSettings:
    """A model and where it computes."""

    model: str
    """MODEL as users name it."""
    name: str | None = None
    """Name towards clients; None: MODEL, of a path its last part."""
    device: str = "auto"
    device_map: str | None = None
    """In place of `device`, one for each part of the model: see `DeviceMap.parse`."""
    threads: int | None = None
    """None: by the size of the model."""
    weights: str | None = None
    """Form of the large matrices, as for `open_bundle`."""
    scorer_weights: str | None = None
    dtype: str | None = None
    """Of the weights in memory: `float64`, `float32`, `bfloat16`, `float16`; None: as `load_bundle` does."""
    limits: Limits = field(default_factory=Limits)
    backend: str = "eager"
    """What runs a step (`native/`): `eager`, `native` or `auto`."""
