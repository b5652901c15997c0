"""Messages between the process that speaks HTTP and the one that owns the model: frozen values, pickled in lists.

Every request has a key, and choice i of a request is addressed as (key, i). What follows a `Submit`: `Prompted` once
where it was asked for, then the choices' `Delta`s; a `Failed` ends the whole request instead. Without choices
`Prompted` is the end. Nothing follows a `Cancel`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bltkit.generate import Chunk, Request
from bltkit.patching.patched import PatchedText
from bltkit.serve.limits import Limits

Reason = Literal["too_long", "no_memory", "unsupported", "timeout", "internal", "draining"]
"""Why a request failed: prompt and max_bytes exceed the context; its sequences would never fit; the model cannot do
what the strategy needs; its deadline passed; the computation failed; the server ends."""


@dataclass(frozen=True)
class Submit:
    """A new request."""

    key: int
    ids: tuple[int, ...]
    """The prompt, which begins with BOS."""
    choices: tuple[Request, ...] = ()
    """One for each choice. Empty: the prompt is only scored."""
    prompt_logprobs: int | None = None
    """None: not asked for; else the number of most probable ids for each of the prompt's."""
    seconds: float | None = None
    """From its arrival to its deadline; what was generated until then is handed out, then it fails as `timeout`."""


@dataclass(frozen=True)
class Patch:
    """Cut a text into patches."""

    key: int
    data: bytes


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this request any more."""

    key: int


@dataclass(frozen=True)
class Read:
    """The client took bytes of a choice."""

    key: int
    choice: int
    size: int


@dataclass(frozen=True)
class Report:
    """Send `Figures` now."""


@dataclass(frozen=True)
class Drain:
    """Take no new requests; finish what runs, or end it after `seconds` with what it has. Then `Drained`."""

    seconds: float


Order = Submit | Patch | Cancel | Read | Report | Drain
"""To the owner of the model."""


@dataclass(frozen=True)
class ModelInfo:
    """What HTTP has to know of the model and the scheduler's limits."""

    name: str
    parameters: int
    context: int
    """Bytes of prompt and continuation together."""
    strategies: tuple[str, ...]
    """Kinds that this model can decode with."""
    record: Mapping[str, Any]
    """The training record; its chat template is in it (`ChatTemplate.of_record`)."""
    rule: str
    sequence_bytes: int
    """Bytes of keys and values that a sequence of `context` bytes takes at most, spare room included."""
    memory: int
    """Bytes of keys and values that all sequences together may hold."""
    limits: Limits
    device: str
    weights: str
    """Form or dtype of the weights."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    info: ModelInfo


@dataclass(frozen=True)
class Refused:
    """The model cannot be served; the process ends."""

    text: str


@dataclass(frozen=True)
class Started:
    """The request waits no more: its prompt is being read."""

    key: int


@dataclass(frozen=True)
class Prompted:
    """Log-probabilities of every id of the prompt but the first."""

    key: int
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    """In each one's place the most probable ids, as many as asked for; empty where none were."""


@dataclass(frozen=True)
class Delta:
    """Bytes of a choice as they become certain; the last one of a choice has `chunk.finish` and `chunk.stats`."""

    key: int
    choice: int
    chunk: Chunk


@dataclass(frozen=True)
class Failed:
    """The end of a request and all of its choices; `text` never quotes what the user sent."""

    key: int
    reason: Reason
    text: str


@dataclass(frozen=True)
class Patched:
    """The patches of a text."""

    key: int
    text: PatchedText


@dataclass(frozen=True)
class Figures:
    """State and counters of the scheduler, for metrics. Counters rise from the start of the process."""

    running: int = 0
    """Sequences that a round steps."""
    parked: int = 0
    """Sequences that wait for their reader."""
    waiting: int = 0
    """Sequences whose prompt is not read yet."""
    waiting_bytes: int = 0
    """Bytes of their prompts."""
    cache_bytes: int = 0
    """Bytes of keys and values of all sequences, with their spare room; prompts that are being read included."""
    prefix_bytes: int = 0
    """Bytes of keys and values that the prefix cache holds."""
    memory: int = 0
    """The bound of both together."""
    median_round: float = 0.0
    """Seconds of a recent round."""
    rounds: int = 0
    round_rows: int = 0
    """Sequences of all rounds, summed."""
    round_seconds: float = 0.0
    prompts: int = 0
    prompt_bytes: int = 0
    prefix_hits: int = 0
    prefix_hit_bytes: int = 0
    """Bytes of prompts that were not read, since the prefix cache had their state."""
    generated_bytes: int = 0
    patches: int = 0
    """Patches that generated bytes opened."""
    global_passes: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    weight_bytes_read: int = 0
    kv_bytes_read: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    """Choices by how they ended: a `Finish`, a `Reason`, or "cancelled"."""


@dataclass(frozen=True)
class Drained:
    """All requests have ended; the process ends."""


Event = Ready | Refused | Started | Prompted | Delta | Failed | Patched | Figures | Drained
"""From the owner of the model."""
