"""The size of patches that costs are counted with: the rule's own, a measured or calibrated one, or an assumed one."""

import json
import re
from pathlib import Path

import pytest
import torch

from bltkit import cli
from bltkit.cost.ledger import ledger_of
from bltkit.patching import parse_rule, patch
from bltkit.vocab import OFFSET

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "69m.toml")


@pytest.mark.parametrize(
    ("rule", "mean", "source"),
    [
        ("stride:k=8", 8.0, "rule stride:k=8.0"),
        ("stride:k=4", 4.0, "rule stride:k=4.0"),
        ("stride:k=6.5", 6.5, "rule stride:k=6.5"),
        ("byte", 1.0, "rule byte"),
        ("random:k=6", 6.0, "rule random:k=6.0"),
        ("stride:k=8,max_patch_bytes=3", 8 / 3, "rule stride:k=8.0,max_patch_bytes=3"),
        ("space:max_patch_bytes=1", 1.0, "rule space:max_patch_bytes=1"),
        ("space", 4.5, "assumed"),
        ("space:max_patch_bytes=3", 3.0, "assumed: max_patch_bytes = 3 is the most"),
        ("threshold:threshold=1.3", 4.5, "assumed"),
    ],
)
def test_a_configs_rule_says_how_long_patches_are(rule: str, mean: float, source: str) -> None:
    ledger = ledger_of(CONFIG, overrides=[f"patching.rule={rule}"])
    assert (ledger.patch_bytes, ledger.patch_bytes_source) == (pytest.approx(mean), source)
    assert f"{mean:.2f} bytes per patch ({source})" in ledger.summary()
    assert json.loads(json.dumps(ledger.to_json()))["patch_bytes_source"] == source


def test_shipped_configs_and_models() -> None:
    found = {
        name: ledger_of(ROOT / "configs" / f"{name}.toml")
        for name in ("megabyte-tiny", "spacebyte-tiny", "tiny-learned", "69m")
    }
    assert {name: (ledger.patch_bytes, ledger.patch_bytes_source) for name, ledger in found.items()} == {
        "megabyte-tiny": (8.0, "rule stride:k=8.0"),
        "spacebyte-tiny": (4.5, "assumed"),
        "tiny-learned": (4.5, "objective.patch_bytes"),
        "69m": (4.5, "assumed"),
    }
    assert ledger_of("bltkit:tiny").patch_bytes_source == "measured in training"
    assert ledger_of("bltkit:tiny", 3.0).patch_bytes_source == "given"
    assert ledger_of(ROOT / "configs" / "tiny-entropy.toml").patch_bytes_source is None


@pytest.mark.parametrize(
    "rule",
    [
        "stride:k=8",
        "stride:k=3.7",
        "stride:k=7.4,max_patch_bytes=3",
        "stride:k=4.5,max_patch_bytes=4",
        "byte",
        "random:k=5",
        "random:k=5,max_patch_bytes=4",
        "random:k=2.5,max_patch_bytes=2",
        "space:max_patch_bytes=1",
    ],
)
def test_a_rules_mean_is_what_it_makes_of_a_long_text(rule: str) -> None:
    parsed = parse_rule(rule)
    assert parsed.mean_patch_bytes is not None
    ids = torch.randint(256, (1, 60_001), generator=torch.Generator().manual_seed(0)) + OFFSET
    ids[0, 0] = 1
    patches = int(patch(parsed, ids).num_patches) - 1
    assert parsed.mean_patch_bytes == pytest.approx(60_000 / patches, rel=0.02)


@pytest.mark.parametrize("rule", ["space", "threshold:threshold=1", "rise:rise=0.1", "bpe", "space:max_patch_bytes=3"])
def test_other_rules_have_none(rule: str) -> None:
    assert parse_rule(rule).mean_patch_bytes is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("CONFIG data.row_bytes=0", r"\[data\]: row_bytes = 0"),
        ("CONFIG data.row_bytes=nan", r"\[data\]: row_bytes = nan"),
        ("CONFIG data.rowbytes=9", "did you mean 'row_bytes'"),
        ("CONFIG optim.lr=-1", r"\[optim\]: lr = -1"),
        ("CONFIG tariner.max_steps=1", "unknown key 'tariner'; did you mean 'trainer'"),
        ("CONFIG model.latent.layers=99999999999", "model.latent.layers = 99999999999 is too large"),
        ("CONFIG model.latent.width=1000000000000", "too large"),
        ("bltkit:tiny --context 0", "^context = 0"),
        ("bltkit:tiny --context -5", "^context = -5"),
        ("bltkit:tiny --context 2", r"^context = 2 is less than one patch of 4.49\d* bytes \(measured in training\)"),
        ("bltkit:tiny --context 99999999999999", "^context"),
        ("llama:3-8b --context 0", "^context = 0"),
        ("bltkit:tiny --patch-bytes nan", "^patch_bytes = nan"),
        ("bltkit:tiny --patch-bytes inf", "^patch_bytes = inf"),
        ("bltkit:tiny --patch-bytes -1", "^patch_bytes = -1"),
        ("llama:3-8b --bytes-per-token nan", "^bytes_per_token = nan"),
        ("bltkit:tiny --strategy speculative:draft=8 --accepted nan", "accepted = nan"),
        ("CONFIG --mesh 0x8", "--mesh 0x8: write NODESxDEVICES"),
        ("CONFIG --mesh 8", "--mesh 8: write NODESxDEVICES"),
        ("CONFIG --mesh 8x99999999", "--mesh 8x99999999"),
        ("CONFIG --mesh 1x8 --rate nan", "--rate nan"),
        ("CONFIG --mesh 1x8 --rate inf", "--rate inf"),
        ("CONFIG --mesh 1x8 --rate 1e-320", "--rate 1e-320"),
        ("CONFIG --mesh 1x8 --memory nan", "--memory nan"),
        ("CONFIG --mesh 1x8 --bandwidth -1", "--bandwidth -1"),
        ("CONFIG --mesh 1x8 --patch-bytes nan", "patch_bytes = nan"),
        ("CONFIG --mesh 1x8 data.batch_rows=1000000000000000", "data.batch_rows = 1000000000000000"),
    ],
)
def test_numbers_out_of_range_are_named(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["flops", *arguments.replace("CONFIG", CONFIG).split()])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert re.search(words, err.removeprefix("blt: ")), err


@pytest.mark.parametrize("value", [float("nan"), -1, True, "3", 1e300])
def test_counts_of_a_run_are_numbers(value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("bytes", "entropy_passes", "encoder_passes", "global_passes", "decoder_passes", "drafted", "accepted")
    (tmp_path / "stats.json").write_text(json.dumps(dict.fromkeys(names, 5) | {"drafted": value}))
    command = ["flops", "bltkit:tiny", "--strategy", "speculative:draft=8", "--stats", str(tmp_path / "stats.json")]
    assert cli.main(command) == 2
    assert "stats: drafted = " in capsys.readouterr().err


def test_a_plan_takes_the_rules_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["flops", CONFIG, "patching.rule=stride:k=8", "--mesh", "1x8"]) == 0
    assert "assumed: 8 bytes per patch (rule stride:k=8.0)" in capsys.readouterr().out
