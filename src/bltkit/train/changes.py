"""What may be changed where a run goes on from its own checkpoint, and what was: `changes.jsonl`.

Weights fit a config of other heads, windows or rules as well as their own, and would train on as another model. So a
run's config is compared key by key with the one that it has in config.toml. `CHANGEABLE` lists what may differ: rates,
lengths, data of the same content, machines, reports. Anything else is refused, a key that is added later among it.

A change that takes effect is appended to changes.jsonl (its step, both values), and config.toml then says what holds.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.config import dump_toml, parse
from bltkit.files import parse_json, read_toml
from bltkit.train.config import TrainConfig

CONFIG_TOML = "config.toml"
CHANGES = "changes.jsonl"

CHANGEABLE = frozenset(
    {
        # Every field of the update rule: none is part of the state.
        "optim.lr",
        "optim.tables_lr",
        "optim.latent_lr",
        "optim.betas",
        "optim.eps",
        "optim.weight_decay",
        "optim.decay",
        "optim.tables",
        "optim.clip",
        "optim.schedule",
        # Not optim.muon.momentum, which is there wherever Muon is: with or without it, moments would be missing.
        "optim.muon.lr",
        "optim.ema",
        "optim.warmup_steps",
        "optim.min_lr_ratio",
        "optim.schedule_steps",
        # How long, where, and what is told.
        "trainer.max_steps",
        "trainer.accumulate",
        "trainer.device",
        "trainer.threads",
        "trainer.precision",
        "trainer.shard",
        "trainer.checkpoint_activations",
        "trainer.compile",
        "trainer.deterministic",
        "trainer.log_every",
        "trainer.report",
        "trainer.validate_every",
        "trainer.validation_batches",
        # Another place of the same text; the position names a digest of documents, weights and split.
        "data.sources",
        "data.validation_fraction",
        "data.cache",
        "data.workers",
        "data.batch_rows",
        # Another place of the same files; the position names their digests.
        "patching.model",
        "patching.where",
        "objective.tokenizer",
        "adapt.freeze",
        "guard.spike_factor",
        "guard.window",
        "guard.after",
        "guard.on_spike",
        "guard.max_skips",
        "checkpoint.every_seconds",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "checkpoint.keep_every",
        "checkpoint.background",
        "checkpoint.export",
        "checkpoint.dtype",
    }
)
"""Keys that a resumed run may change; of a table, all that is in it."""

Changes = dict[str, tuple[Any, Any]]
"""By key: the value of before and the new one; None where there is none."""


def changes_of(run: Path, config: TrainConfig, say: Callable[[str], None]) -> Changes:
    """The differences between the config in a run's directory and `config`.

    say: told in one line where the directory has no config to compare with.
    Raises ValueError for a difference that a run cannot take up, by key and with both values.
    """
    path = run / CONFIG_TOML
    try:
        stored: TrainConfig = parse(TrainConfig, read_toml(path), str(path))
    except FileNotFoundError:
        say(f"{path} is missing: whether this run has the same config as before is not compared")
        return {}
    before, after = _keys(stored), _keys(config)
    changes = {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
    refused = [key for key in changes if not _changeable(key)]
    if refused:
        old, new = (_shown(value) for value in changes[refused[0]])
        more = f"; so do {', '.join(refused[1:4])}" if refused[1:] else ""
        more += f" and {len(refused) - 4} more" if refused[4:] else ""
        raise ValueError(
            f"{refused[0]} = {new} differs from the run's own, {old} ({path}){more}: set it back, or start another run "
            f"with --out, which can take this one's weights (trainer.init) or all of its state (trainer.branch)"
        )
    return changes


def write_changes(run: Path, step: int, changes: Changes, config: TrainConfig) -> None:
    """Write down what changes from `step` on, and make config.toml the config that holds. Raises OSError."""
    plain = dump_toml(config.model_dump(mode="json")).encode()
    if changes:
        row = {"step": step, "changes": {key: {"before": old, "after": new} for key, (old, new) in changes.items()}}
        path = run / CHANGES
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        line = (json.dumps(row) + "\n").encode()
        if line not in lines[-1:]:  # else a kill came before config.toml was replaced
            write_atomic(path, b"".join([*lines, line]))
    if changes or not (run / CONFIG_TOML).exists():
        write_atomic(run / CONFIG_TOML, plain)


def read_changes(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's changes.jsonl: `step`, and by key the values before and after. Raises ValueError."""
    path = Path(run) / CHANGES
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _keys(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def walk(table: Mapping[str, Any], path: str) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping):
                walk(value, f"{path}{key}.")
            else:
                values[path + key] = value

    walk(config.model_dump(mode="json", exclude_none=True), "")
    return values


def _changeable(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
