"""The ledger as a value: its rows, their sums, and the tables that people read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from bltkit.cost.ledger.passes import PassRates


@dataclass(frozen=True)
class LedgerRow:
    """A module, or a sum of modules; all but `params` per byte of text."""

    params: int
    weight_bytes: float
    """Weights that decoding reads; of embedding tables the rows looked up."""
    kv_bytes: float
    """Cached keys and values that decoding reads, mean over the row."""
    flops_exact: float
    """Operations of all matrix products, forward; in a ledger of a decoding strategy, those of decoding with it."""
    flops_paper: float | None
    """The paper's formula (eq. 13-17), which leaves the entropy model and decoding strategies out: None there."""
    flops_train: float
    """Forward and backward: three times the forward pass over a text, and what is recomputed. Of an entropy model that
    finds the patches of another model's training the forward pass alone; none where the patches are stored."""

    def line(self, name: str) -> str:
        """The row of a table."""
        numbers = (self.weight_bytes, self.kv_bytes, self.flops_exact, self.flops_paper, self.flops_train)
        cells = "".join(f"{'' if number is None else _mega(number):>10}" for number in numbers)
        return f"{name:<20}{self.params:>16,}{cells}"

    def __add__(self, other: Self) -> Self:
        paper = None
        if self.flops_paper is not None and other.flops_paper is not None:
            paper = self.flops_paper + other.flops_paper
        return type(self)(
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.flops_exact + other.flops_exact,
            paper,
            self.flops_train + other.flops_train,
        )


HEAD = f"{'module':<20}{'params':>16}{'MB read':>10}{'KV MB':>10}{'MFLOP':>10}{'paper':>10}{'training':>10}"


@dataclass(frozen=True)
class Ledger:
    """What `blt flops` answers."""

    modules: Mapping[str, LedgerRow]
    """The model's parts; `blocks`, what a BLT-D's training computes besides; and `entropy` for the scorer."""
    total: LedgerRow
    """The modules that the paper counts; the scorer alone where there is nothing else."""
    total_with_entropy: LedgerRow
    params: int
    """Of the model without its scorer."""
    params_without_tables: int
    """Without the hash n-gram tables."""
    params_without_embeddings: int
    """Without all tables that are only looked up. A token model's tied table stays: the head multiplies by it."""
    patch_bytes: float | None
    """Bytes per patch; None for a token model and for a model of bytes, which have no patches."""
    bytes_per_token: float | None
    context: int
    """Bytes of text in the row, whatever they are cut into."""
    element_bytes: int
    scorer: str | None
    """Whose cost stands under `entropy`: a checkpoint, or a preset that was assumed."""
    strategy: str | None = None
    """The decoding strategy that weights, keys and values, and `flops_exact` are those of; None: byte by byte."""
    passes: PassRates | None = None
    """Its passes per byte of text."""
    paper_bytes: float | None = None
    """What the paper's estimate of bandwidth charges a byte of text: see `generate.ledger.paper_gb`."""
    sequence_bytes: int | None = None
    """Cached keys and values that a sequence of the whole context holds, those of the entropy model included; None
    where no BLT decodes."""
    patch_bytes_source: str | None = field(default=None, compare=False)
    """Where `patch_bytes` is known from: given, the rule, measured in training, calibrated, or assumed."""
    notes: tuple[str, ...] = ()
    """What was assumed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def shares(self) -> dict[str, float]:
        """Of each module, the entropy model included, in the operations of a forward pass."""
        return {name: row.flops_exact / self.total_with_entropy.flops_exact for name, row in self.modules.items()}

    def summary(self) -> str:
        """A table for people: what one byte of text costs, by module."""
        rows = dict(self.modules) | {"total": self.total}
        if "entropy" in self.modules:
            rows["total_with_entropy"] = self.total_with_entropy
        lines = [HEAD, *(row.line(name) for name, row in rows.items())]
        without = [f"{self.params:,} parameters"]
        if self.params_without_tables != self.params:
            without.append(f"{self.params_without_tables:,} without hash tables")
        without.append(f"{self.params_without_embeddings:,} without embeddings")
        entropy = f", entropy model: {self.scorer}" if self.scorer else ""
        lines += [", ".join(without), f"per byte of text, {self.unit()} and {self.context} bytes of context{entropy}"]
        if self.sequence_bytes is not None:
            held = self.sequence_bytes / 1e6
            lines.append(f"{held:,.1f} MB of keys and values per sequence of {self.context:,} bytes")
        if self.strategy is not None and self.passes is not None:
            lines.append(f"decoding with {self.strategy}: {self.passes.summary()}")
        return "\n".join([*lines, *self.notes])

    def unit(self) -> str:
        """What the text is cut into."""
        if self.bytes_per_token is not None:
            return f"{self.bytes_per_token:.2f} bytes per token"
        if self.patch_bytes is None:
            return "byte by byte"
        source = "" if self.patch_bytes_source is None else f" ({self.patch_bytes_source})"
        return f"{self.patch_bytes:.2f} bytes per patch{source}"


def sum_rows(rows: Sequence[LedgerRow]) -> LedgerRow:
    """Their sum; there must be one."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


@dataclass(frozen=True)
class SideBySide:
    """Several models, in the order in which they were named."""

    names: tuple[str, ...]
    ledgers: tuple[Ledger, ...]

    def ratios(self) -> list[dict[str, float]]:
        """Of each model's totals, with the entropy model, to the first one's."""
        first = self._totals[0]
        return [{name: _share(getattr(own, name), getattr(first, name)) for name in _RATIOS} for own in self._totals]

    def to_json(self) -> dict[str, Any]:
        """Plain values: `models`, each with its `target`, ledger and `ratios` to the first."""
        triples = zip(self.names, self.ledgers, self.ratios(), strict=True)
        return {"models": [{"target": name, **one.to_json(), "ratios": ratios} for name, one, ratios in triples]}

    def summary(self) -> str:
        """A line for each, and under it the ratios to the first."""
        longest = max(20, *(len(name) + 2 for name in self.names))
        lines = ["model".ljust(longest) + HEAD[20:]]
        for name, total, ratios in zip(self.names, self._totals, self.ratios(), strict=True):
            lines.append(name.ljust(longest) + total.line("")[20:])
            if total is not self._totals[0]:
                cells = {name: f"x {ratio:.3g}" for name, ratio in ratios.items()} | {"flops_paper": ""}
                lines.append(" " * longest + "".join(f"{cells[name]:>{width}}" for name, width in _COLUMNS))
        lines.append("per byte of text, entropy models included")
        for name, one in zip(self.names, self.ledgers, strict=True):
            lines += [f"{name}: {one.unit()}, {one.context} bytes of context", *one.notes]
        return "\n".join(lines)

    @property
    def _totals(self) -> list[LedgerRow]:
        return [one.total_with_entropy for one in self.ledgers]


_COLUMNS = (
    ("params", 16),
    ("weight_bytes", 10),
    ("kv_bytes", 10),
    ("flops_exact", 10),
    ("flops_paper", 10),
    ("flops_train", 10),
)
_RATIOS = tuple(name for name, _ in _COLUMNS if name != "flops_paper")


def _share(own: float, first: float) -> float:
    return own / first if first else 0.0


def _mega(value: float) -> str:
    """In millions, with as many digits as a small model needs."""
    return f"{value / 1e6:.2f}" if value >= 1e6 or not value else f"{value / 1e6:.4f}"
