"""From what a user names to a ledger: a training config, a MODEL, or the shape of a token model.

Parameters are counted on the meta device, and of a token model the configuration alone is read: an 8B model costs no
memory here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from bltkit.checkpoint import load_bundle, resolve_model
from bltkit.checkpoint.fetch import HUB
from bltkit.config import Config, load_toml, nearest, parse
from bltkit.cost.formulas.operations import ScorerConfig
from bltkit.cost.ledger.count import BYTES_PER_TOKEN, PATCH_BYTES, check_context, ledger, token_ledger
from bltkit.cost.ledger.passes import PassRates, expected, read_stats
from bltkit.cost.ledger.row import Ledger
from bltkit.cost.ledger.token_shape import LLAMA, parse_token_shape, token_shape_of_hf
from bltkit.files import read_json
from bltkit.generate.strategies import parse_strategy
from bltkit.model import ENTROPY_PRESETS, BltConfig, BoundaryConfig, CnnConfig, EntropyConfig, entropy_preset
from bltkit.model.config import TokenConfig, TokenShape
from bltkit.model.presets import expand_preset
from bltkit.patching import PatchingRule, Rule, parse_rule

TOKEN = "token:"

MAX_LAYERS, MAX_SIZE = 10_000, 100_000_000
"""Largest number of layers, and any other number of a shape, that is counted."""

ASSUMED_SCORER = "100m"
"""Preset counted where a training config names an entropy model that is not there yet (the released models'), unless
its name is `PRESET-entropy`, as our own configs call theirs."""


@dataclass(frozen=True)
class Decoding:
    """How a model is decoded: a strategy by its written name, and what is known of its passes (see `expected`).

    stats: a file that `blt generate --json` wrote, in place of `accepted` and `unmasking`.
    """

    strategy: str
    accepted: float | None = None
    unmasking: float | None = None
    stats: str | Path | None = None

    def rates(self, config: BltConfig, patch_bytes: float, entropy: bool) -> tuple[PassRates, tuple[str, ...]]:
        """Passes per byte of text, and what was assumed. Raises ValueError with the remedy."""
        strategy = parse_strategy(self.strategy)
        if self.stats is None:
            return expected(
                strategy, config, patch_bytes, accepted=self.accepted, unmasking=self.unmasking, entropy=entropy
            )
        if self.accepted is not None or self.unmasking is not None:
            raise ValueError("--stats tells what was accepted: leave --accepted and --unmasking out")
        return PassRates.of_stats(read_stats(self.stats), strategy, config), (f"passes as counted in {self.stats}",)


@dataclass(frozen=True)
class LedgerSubject:
    """What is to be counted. scored: training runs the scorer; else its patches are stored. block: cells that training
    adds for every patch. patch_bytes: mean bytes per patch and where it is known from; None where nobody knows.
    max_patch_bytes: longest patch of the rule."""

    model: BltConfig | TokenShape | None
    scorer: ScorerConfig | None = None
    scorer_name: str | None = None
    scored: bool = True
    recompute: bool = False
    block: int = 0
    patch_bytes: tuple[float, str] | None = None
    max_patch_bytes: int | None = None

    def patch_size(self) -> tuple[float, str]:
        """Mean bytes per patch, and where it is known from; `PATCH_BYTES` is assumed where nobody knows."""
        if self.patch_bytes is not None:
            return self.patch_bytes
        if self.max_patch_bytes is not None and self.max_patch_bytes < PATCH_BYTES:
            return float(self.max_patch_bytes), f"assumed: max_patch_bytes = {self.max_patch_bytes} is the most"
        return PATCH_BYTES, "assumed"


def ledger_of(
    target: str | Path,
    patch_bytes: float | None = None,
    context: int = 8192,
    overrides: Sequence[str] = (),
    *,
    bytes_per_token: float | None = None,
    annotated: bool | None = None,
    decoding: Decoding | None = None,
) -> Ledger:
    """The ledger of a training config (a TOML file), of a MODEL, or of a token model.

    target: a token model is `token:DIR`, of whose files config.json alone is read, or `llama:NAME` or
    `llama:width=...,layers=...,heads=...,vocab_size=...`.
    overrides: `section.key=value` on top of a config.
    patch_bytes: by default the rule's own mean where it has one, else what the model's record holds as measured or
        calibrated, else `PATCH_BYTES`; `Ledger.patch_bytes_source` says which.
    bytes_per_token: `BYTES_PER_TOKEN` by default.
    annotated: does training find the patches stored; by default what a config says, and False for a MODEL.
    A config's scorer is the checkpoint under `patching.model`; of one that is not there yet the size is assumed, and
    `Ledger.scorer` says so. Raises ValueError with one line.
    """
    subject = _subject(str(target), overrides)
    if isinstance(subject.model, TokenShape):
        for name, given in (("patch_bytes", patch_bytes), ("strategy", decoding), ("annotated", annotated)):
            if given is not None:
                raise ValueError(f"{name}: {target} is a token model, which has no patches; leave it out")
        per_token = BYTES_PER_TOKEN if bytes_per_token is None else bytes_per_token
        return token_ledger(subject.model, per_token, context, recompute=subject.recompute)
    if bytes_per_token is not None:
        raise ValueError(f"bytes_per_token: {target} is no token model; say --patch-bytes")
    check_context(context)
    patch_bytes, source = subject.patch_size() if patch_bytes is None else (patch_bytes, "given")
    if source != "given" and patch_bytes > context:
        raise ValueError(f"context = {context} is less than one patch of {patch_bytes:g} bytes ({source})")
    rates, notes, strategy = None, tuple[str, ...](), None
    if decoding is not None:
        if not isinstance(subject.model, BltConfig):
            raise ValueError(f"strategy {decoding.strategy!r} is for decoding with a BLT, which {target} is not")
        strategy = decoding.strategy
        rates, notes = decoding.rates(subject.model, patch_bytes, subject.scorer is not None)
    found = ledger(
        subject.model,
        subject.scorer,
        patch_bytes,
        context,
        scorer_name=subject.scorer_name,
        annotated=not subject.scored if annotated is None else annotated,
        recompute=subject.recompute,
        block=subject.block,
        passes=rates,
        strategy=strategy,
        patch_bytes_source=source,
    )
    return replace(found, notes=(*found.notes, *notes))


def is_token_model(target: str) -> bool:
    """Is the target a token model: by its name, or by what a training config says."""
    if target.endswith(".toml"):
        return bool(_table(load_toml(target), "model").get("kind") == TokenConfig.model_fields["kind"].default)
    return target.startswith((LLAMA, TOKEN))


def scorer_named(name: str) -> tuple[ScorerConfig | None, str]:
    """The scorer of a checkpoint, and whose it is; of a checkpoint that is not there an assumed one."""
    try:
        directory = resolve_model(name)
    except ValueError:
        called = Path(name).name.removesuffix("-entropy")
        preset = called if called in ENTROPY_PRESETS else ASSUMED_SCORER
        return entropy_preset(preset), f"preset {preset} ({name} is not there)"
    return _config_of(load_bundle(directory, device="meta").scorer), name


def _subject(target: str, overrides: Sequence[str]) -> LedgerSubject:
    if target.endswith(".toml"):
        return _of_config(Path(target), overrides)
    if overrides:
        raise ValueError(f"{overrides[0]}: {target} is no training config (TOML), of which alone a value can be set")
    if target.startswith(LLAMA):
        return LedgerSubject(parse_token_shape(target))
    if target.startswith(TOKEN):
        return LedgerSubject(_of_token_model(target.removeprefix(TOKEN)))
    bundle = load_bundle(resolve_model(target), device="meta")
    scorer = _config_of(bundle.scorer)
    model = None if bundle.model is None else bundle.model.config
    return LedgerSubject(
        model,
        scorer,
        None if scorer is None else target,
        block=0 if model is None else model.diffusion_block or 0,
        patch_bytes=bundle.mean_patch_bytes,
        max_patch_bytes=None if bundle.rule is None else bundle.rule.max_patch_bytes,
    )


def _of_token_model(name: str) -> TokenShape:
    if name.startswith(HUB):
        raise ValueError(f"{TOKEN}{name} would fetch the weights too: put its config.json into a directory, token:DIR")
    file = resolve_model(name) / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise ValueError(f"{TOKEN}{name}: there is no config.json; name the directory of a token model") from None
    return token_shape_of_hf(config if isinstance(config, dict) else {}, str(file))


def _of_config(path: Path, overrides: Sequence[str]) -> LedgerSubject:
    data = load_toml(path, overrides)
    section = data.get("model")
    if not isinstance(section, dict):
        raise ValueError(f"{path}: section [model] is missing")
    section = expand_preset(section)
    kinds: dict[str, type[Config]] = {
        "blt": BltConfig,
        "entropy": EntropyConfig,
        "boundary": BoundaryConfig,
        "cnn": CnnConfig,
        "bpe": TokenConfig,
    }
    if section["kind"] not in kinds:
        raise ValueError(f"{path}: model.kind = {section['kind']!r}{nearest(str(section['kind']), list(kinds))}")
    model: Config = parse(kinds[section["kind"]], section, f"{path}: model")
    check_countable(model, f"{path}: model")
    _check_sections(data, str(path))
    recompute = bool(_table(data, "trainer").get("checkpoint_activations", False))
    if isinstance(model, TokenConfig):
        return LedgerSubject(model, recompute=recompute)
    if not isinstance(model, BltConfig):
        assert isinstance(model, ScorerConfig)
        return LedgerSubject(None, model, str(path), recompute=recompute)
    name = _table(data, "patching").get("model")
    scorer, scorer_name = (None, None) if name is None or _needs_no_scores(data) else scorer_named(name)
    size, longest = patch_size_of(data)
    return LedgerSubject(model, scorer, scorer_name, not _stored(data), recompute, _block(data), size, longest)


def check_countable(shape: Config, where: str) -> None:
    """Raise ValueError for a model that no machine holds, not even as shapes: its modules are built to be counted."""
    for name in type(shape).model_fields:
        value = getattr(shape, name)
        if isinstance(value, Config):
            check_countable(value, f"{where}.{name}")
        most = MAX_LAYERS if name == "layers" else MAX_SIZE
        if isinstance(value, int) and value > most:
            raise ValueError(f"{where}.{name} = {value} is too large to be counted; the most is {most:,}")


def _check_sections(data: dict[str, Any], where: str) -> None:
    """Every section of a training config but the model. What is not needed to count may be missing, never wrong."""
    from bltkit.train import TrainConfig

    for name, value in data.items():
        if name not in TrainConfig.model_fields:
            raise ValueError(f"{where}: unknown key {name!r}{nearest(name, list(TrainConfig.model_fields))}")
        if name == "trainer" and isinstance(value, dict):
            value = {"max_steps": 1, **value}
        if name != "model":
            field = TrainConfig.model_fields[name]
            parse(Annotated[field.annotation, *field.metadata, field], value, f"{where}: [{name}]")


def patch_size_of(data: dict[str, Any]) -> tuple[tuple[float, str] | None, int | None]:
    """What a training config tells of its patches: their mean size with its source, and the size of the longest.

    By the rule; the rate that a learned boundary is trained to; or the checkpoint of the entropy model, which was
    calibrated.
    """
    from bltkit.train.objectives import LearnedBoundary

    objective = _table(data, "objective")
    if objective.get("kind") == LearnedBoundary.model_fields["kind"].default:
        learned: LearnedBoundary = parse(LearnedBoundary, objective, "objective")
        return (learned.patch_bytes, "objective.patch_bytes"), learned.max_patch_bytes
    section = _table(data, "patching")
    rule = _rule(data)
    if rule is not None and rule.mean_patch_bytes is not None:
        return (rule.mean_patch_bytes, f"rule {rule}"), rule.max_patch_bytes
    longest = None if rule is None else rule.max_patch_bytes
    try:
        stored = load_bundle(resolve_model(section["model"]), device="meta")
    except (KeyError, ValueError):  # named nowhere, or not there yet
        return None, longest
    if rule is None or rule == stored.rule:
        return stored.mean_patch_bytes, None if stored.rule is None else stored.rule.max_patch_bytes
    return None, longest


def _table(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _needs_no_scores(data: dict[str, Any]) -> bool:
    rule = _rule(data)
    return rule is not None and rule.scores is None


def _rule(data: dict[str, Any]) -> PatchingRule | None:
    rule = _table(data, "patching").get("rule")
    if rule is None:
        return None
    parsed: PatchingRule = parse_rule(rule) if isinstance(rule, str) else parse(Rule, rule, "patching.rule")
    return parsed


def _stored(data: dict[str, Any]) -> bool:
    """Do all sources bring their patches along."""
    sources = _table(data, "data").get("sources")
    listed = sources if isinstance(sources, list) else [sources]
    return bool(listed) and all(isinstance(one, dict) and one.get("kind") == "annotated" for one in listed)


def _block(data: dict[str, Any]) -> int:
    """Cells that the objective adds for every patch."""
    section = _table(data, "objective")
    if section.get("kind") != "block-diffusion":
        return 0
    from bltkit.train.objectives import BlockDiffusion

    return parse(BlockDiffusion, section, "objective").cells


def _config_of(scorer: nn.Module | None) -> ScorerConfig | None:
    """None for an entropy table, whose look-up costs nothing that is counted here."""
    config = getattr(scorer, "config", None)
    return config if isinstance(config, ScorerConfig) else None
