"""What was measured and under which circumstances: a row, which is one line of JSON."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from bltkit.bench.bench_subject import BenchSubject
from bltkit.bench.machine_rates import MachineRates
from bltkit.bench.timing import Timing
from bltkit.generate.ledger import Stats


@runtime_checkable
class JsonLine(Protocol):
    """What a line of a file of rows can be."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...


@runtime_checkable
class Details(Protocol):
    """What a row of one kind says besides."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; they stand among the row's own."""
        ...

    def summary(self) -> str:
        """For people."""
        ...


@dataclass(frozen=True)
class Form:
    """How the weights are held; a model is loaded as fp32."""

    weights: str = "fp32"

    def __str__(self) -> str:
        return self.weights


@dataclass(frozen=True)
class DecodingFigures:
    """What a row of decoding says besides; what is None was not measured."""

    strategy: str = "ar"
    """Who drafts; `ar` for nobody."""
    draft: int | None = None
    """Bytes drafted a round at most."""
    temperature: float = 0.0
    """0 for greedy decoding."""
    form: Form = Form()
    peer_dtype: str | None = None
    ledger: Stats | None = None
    """Of all runs timed and all rows of the batch together."""
    prompts: int | None = None
    """Generations, each from a prompt and seed of its own; where there are none, the bytes made were the text's."""
    max_bytes: int | None = None
    """Of a generation."""
    identical: int | None = None
    """Generations with the bytes of autoregressive decoding in the same form."""
    identical_to_fp32: int | None = None
    """Generations with the bytes of autoregressive decoding in fp32."""
    agreement: float | None = None
    """Of the text's bytes: those at which the likeliest id is fp32's."""
    against_ar: float | None = None
    """How many times as fast as autoregressive decoding, in the same form and run."""
    repeated_share: float | None = None
    """Of the bytes generated: those inside a 16-gram that occurs again (`prompts.repeated_share`)."""
    machine_rates: MachineRates | None = None
    """On the row's device and threads, in the row's own run."""

    @property
    def gb_per_second(self) -> float | None:
        """Bandwidth achieved."""
        return None if self.ledger is None else self.ledger.gb_per_second

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted bytes that were kept."""
        if self.ledger is None or not self.ledger.drafted:
            return None
        return self.ledger.accepted / self.ledger.drafted

    def to_json(self) -> dict[str, Any]:
        """Plain values, those that were measured; the ledger has `gb_per_second` and `acceptance` as well."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        if self.ledger is not None:
            found["ledger"] |= {"gb_per_second": self.gb_per_second, "acceptance": self.acceptance}
        return found

    def summary(self) -> str:
        """What precedes a speed, for people."""
        draft = "" if self.draft is None else f" drafting {self.draft} bytes"
        temperature = f"temperature {self.temperature:g}" if self.temperature else "greedy"
        return f"{self.strategy}{draft}, {self.form} weights, {temperature}"

    def findings(self) -> list[str]:
        """What follows a speed, for people."""
        found = []
        if self.against_ar is not None:
            found.append(f"{self.against_ar:.2f} times the speed of ar")
        if self.identical is not None:
            found.append(f"{self.identical} of {self.prompts} texts equal ar's")
        if self.identical_to_fp32 is not None:
            found.append(f"{self.identical_to_fp32} of {self.prompts} texts equal those of fp32 weights")
        if self.agreement is not None:
            found.append(f"the likeliest byte is that of fp32 weights at {self.agreement:.1%} of bytes")
        if self.acceptance is not None:
            found.append(f"{self.acceptance:.1%} of drafted bytes accepted")
        if self.repeated_share is not None:
            found.append(f"{self.repeated_share:.1%} of bytes in a repeated 16-gram")
        return found

    def bandwidth(self) -> str | None:
        """The one achieved beside the machine's own."""
        if self.gb_per_second is None:
            return None
        if self.machine_rates is None:
            return f"reads {self.gb_per_second:.1f} GB/s"
        copy = self.machine_rates.copy_gb_per_second
        share = f"{self.gb_per_second / copy:.0%} of what this machine copies"
        products = self.machine_rates.product_gb_per_second.items()
        best = ", ".join(f"{rate:.1f} GB/s with {form} weights" for form, rate in products)
        line = f"reads {self.gb_per_second:.1f} of {copy:.1f} GB/s ({share})"
        return f"{line}; matrix-vector products alone: {best}" if best else line


@dataclass(frozen=True)
class BenchRow:
    """One measurement."""

    what: str
    preset: str
    """Preset or model."""
    context: int
    batch: int
    """Rows read or generated side by side; speeds are of all of them together."""
    dtype: str
    threads: int
    ours: Timing
    peer: Timing | None
    peer_name: str | None
    max_difference: float | None
    """Largest difference of the two sides' logits, checked before timing; None without a peer of the same weights."""
    mean_patch_bytes: float
    commit: str | None
    machine: Mapping[str, Any]
    command: str
    parts: Mapping[str, Mapping[str, float]] | None = None
    """By module, where that was measured."""
    decoding: DecodingFigures | None = None
    """None for what does not decode."""
    training: Details | None = None
    """None for what does not train."""

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer."""
        return None if self.peer is None else self.ours.bytes_per_second / self.peer.bytes_per_second

    def to_json(self) -> dict[str, Any]:
        """Plain values; `ours` and `peer` are bytes per second, `runs` has what they are medians of.

        The fields of `decoding` and `training` stand among the others.
        """
        sides = {"ours": self.ours} | ({} if self.peer is None else {"peer": self.peer})
        apart = ("ours", "peer", "parts", "decoding", "training")
        own = {name: value for name, value in asdict(self).items() if name not in apart}
        own |= {} if self.decoding is None else self.decoding.to_json()
        own |= {} if self.training is None else self.training.to_json()
        speeds = {name: sides[name].bytes_per_second if name in sides else None for name in ("ours", "peer")}
        runs = {name: side.to_json() for name, side in sides.items()}
        return own | speeds | {"ratio": self.ratio, "runs": runs, "parts": self.parts}

    def summary(self) -> str:
        """One line for people."""
        rows = f", {self.batch} rows side by side" if self.batch > 1 else ""
        how = "" if self.decoding is None else f" ({self.decoding.summary()})"
        line = f"{self.what} {self.preset}, context of {self.context} bytes{rows}{how}: "
        line += f"{self.ours.bytes_per_second:.1f} bytes/s"
        if self.peer is not None:
            line += (
                f"; {self.peer_name} {self.peer.bytes_per_second:.2f} bytes/s, ours is {self.ratio:.2f} times as fast"
            )
        if self.training is not None:
            return f"{line}; {self.training.summary()}"
        if self.decoding is None:
            return line
        bandwidth = self.decoding.bandwidth()
        return ", ".join((line, *self.decoding.findings())) + ("" if bandwidth is None else f"; {bandwidth}")


def row_of(
    subject: BenchSubject,
    what: str,
    timings: Sequence[Timing],
    *,
    context: int,
    threads: int,
    mean_patch_bytes: float,
    command: str,
    batch: int = 1,
    peer_name: str | None = None,
    max_difference: float | None = None,
    parts: Mapping[str, Mapping[str, float]] | None = None,
    decoding: DecodingFigures | None = None,
    training: Details | None = None,
) -> BenchRow:
    """A row with what is known without measuring; timings are ours and, where there is one, the peer's."""
    return BenchRow(
        what=what,
        preset=subject.name,
        context=context,
        batch=batch,
        dtype=str(subject.model.decoder.norm.weight.dtype).removeprefix("torch."),
        threads=threads,
        ours=timings[0],
        peer=timings[1] if peer_name is not None else None,
        peer_name=peer_name,
        max_difference=max_difference,
        mean_patch_bytes=mean_patch_bytes,
        commit=commit(),
        machine=machine(subject.device),
        command=command,
        parts=parts,
        decoding=decoding,
        training=training,
    )


def append_rows(path: str | Path, rows: Sequence[JsonLine]) -> None:
    """Add rows to a file of JSON lines, which is made where there is none. Raises OSError."""
    lines = "".join(json.dumps(row.to_json(), allow_nan=False) + "\n" for row in rows)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(lines)


def machine(device: torch.device) -> dict[str, Any]:
    """What a number depends on."""
    found = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def commit() -> str | None:
    """The source's git commit, `-dirty` behind it if files differ from it; None where the source is no checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a package installed below somebody's checkout is not in it
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
