"""`blt check` explains: entropies with a window and without, thresholds for a patch size, missing fields, layouts."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bltkit import cli
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.diagnostics import findings
from bltkit.diagnostics.entropies import patch_sizes, score_pieces
from bltkit.diagnostics.finding import Finding
from bltkit.diagnostics.health import check, check_directory
from bltkit.diagnostics.thresholds import WantedSize
from bltkit.diagnostics.windows import Stretch, window_effect, with_window
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig
from bltkit.patching import ThresholdRule, parse_rule, patch
from bltkit.vocab import encode
from tests import tiny
from tests.meta_layout import write_hub, write_original

RULE = ThresholdRule(threshold=3.80001)


def text(num_bytes: int = 8192) -> bytes:
    """Random words: no two stretches are alike."""
    draw = random.Random(1)
    words = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9))) for _ in range(num_bytes))
    return " ".join(words).encode()[:num_bytes]


def scorer(window: int | None = 16) -> EntropyModel:
    model: EntropyModel = tiny.fill(
        EntropyModel(EntropyConfig(width=16, layers=2, heads=2, ffn_width=24, window=window)), 0, head=2.0
    )
    return model


def blt(window: int = 512) -> Blt:
    local = StackConfig(width=16, layers=1, heads=2, ffn_width=42, window=window)
    latent = StackConfig(width=32, layers=2, heads=4, ffn_width=24)
    config = BltConfig(
        encoder=local, latent=latent, decoder=local, ngrams=NgramConfig(sizes=(3,), buckets=61), document_masks=False
    )
    model: Blt = tiny.fill(Blt(config), 3)
    return model


def hugging_face(directory: Path, window: int | None = 512) -> Path:
    """A checkpoint as Hugging Face's: without bltkit.json."""
    entropy = EntropyConfig(width=16, layers=2, heads=2, ffn_width=24, window=window, document_masks=False)
    model = tiny.fill(EntropyModel(entropy), 0, head=2.0)
    save_bundle(directory, Bundle(blt(), model, RULE, {}))
    assert json.loads((directory / "config.json").read_text())["model_type"] == "blt"
    (directory / "bltkit.json").unlink()
    return directory


def named(rows: Any) -> dict[str, Finding]:
    return {row.name: row for row in rows}


def plain_stretch(model: EntropyModel, rule: ThresholdRule, data: bytes, begin: int, end: int) -> Stretch:
    """Of one row, position by position."""
    ids = encode(data)
    logits = model(ids[None])[0].double()
    p = logits.softmax(-1)
    entropies = -(p * p.log()).sum(-1)
    surprises = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    opens = [bool(patch(rule, ids[None], entropies[None].float()).starts[0, t]) for t in range(begin + 1, end + 1)]
    return Stretch(end - begin, float(entropies[begin:end].mean()), float(surprises[begin:end].mean()), sum(opens))


@torch.no_grad()
def test_entropies_and_patches_with_the_window_and_without() -> None:
    model, data = scorer(16), text(200)
    effect = window_effect(model, RULE, data)
    unlimited = scorer(None)
    assert (effect.border, effect.row_bytes) == (16, 200)
    expected = {
        "before": plain_stretch(model, RULE, data, 0, 16),
        "after": plain_stretch(model, RULE, data, 16, 200),
        "unlimited": plain_stretch(unlimited, RULE, data, 16, 200),
    }
    for name, stretch in expected.items():
        measured = getattr(effect, name)
        assert (measured.num_bytes, measured.patches) == (stretch.num_bytes, stretch.patches)
        assert measured.entropy == pytest.approx(stretch.entropy, abs=1e-5)
        assert measured.surprise == pytest.approx(stretch.surprise, abs=1e-5)
    assert abs(effect.after.entropy - effect.unlimited.entropy) > 1e-3, "the window is to make a difference here"
    first = plain_stretch(unlimited, RULE, data, 0, 16)
    assert first.entropy == pytest.approx(effect.before.entropy, abs=1e-5), "up to the border both agree"


def test_many_rows_of_a_long_text_are_measured() -> None:
    effect = window_effect(scorer(16), None, text(50_000))
    assert effect.row_bytes == 256 and effect.before.num_bytes == 32 * 16 and effect.after.num_bytes == 32 * 240
    assert effect.before.patches is None and effect.numbers()["before_patches"] is None


def test_another_window_shares_the_weights_and_leaves_the_model_alone() -> None:
    model = scorer(16)
    other = with_window(model, None)
    assert model.config.window == model.stack.config.window == 16
    assert other.config.window is None and other.stack.config.window is None
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)


def test_the_finding_tells_both_in_words_and_in_numbers() -> None:
    finding = named(check(Bundle(None, scorer(16), RULE, {}), [text()]).findings)["window-effect"]
    numbers, told = finding.numbers, " ".join(finding.detail)
    assert numbers["border"] == 16 and numbers["row_bytes"] == 256
    for side in ("with", "without"):
        assert f"{numbers[f'after_{side}_window_patch_bytes']:.2f} bytes per patch" in told
        assert f"entropy {numbers[f'after_{side}_window_entropy']:.2f} nats" in told
    limited = numbers["before_patches"] + numbers["after_with_window_patches"]
    unlimited = numbers["before_patches"] + numbers["after_without_window_patches"]
    assert f"are {limited:,.0f} patches with the window and {unlimited:,.0f} without" in told
    assert finding.value == pytest.approx(
        numbers["after_with_window_surprise"] - numbers["after_without_window_surprise"]
    )


class _Lost(EntropyModel):
    """As weights of a window of 512 behave without it: past it they are sure of nothing."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = super().forward(ids)
        beyond = torch.arange(logits.shape[1]) >= 512
        return logits.masked_fill((beyond & (self.config.window is None))[:, None], 0.0)


def test_a_lost_window_is_a_problem_and_the_remedy_says_what_to_set() -> None:
    config = EntropyConfig(width=16, layers=1, heads=2, ffn_width=24, window=None)
    model: EntropyModel = _Lost(config)
    tiny.fill(model, 0)
    with torch.no_grad():
        for layer in model.stack.layers:  # the stack passes its input on
            for weight in (layer.attention.out.weight, layer.ffn.down.weight):
                weight.zero_()
        model.embed.weight.fill_(1.0)
        model.norm.weight.fill_(1.0)
        model.head.weight.zero_()
        model.head.weight[encode("abcdefghijklmnopqrstuvwxyz ", bos=False)] = 0.4  # likelier than other bytes
    finding = named(check(Bundle(None, model, None, {}), [text()]).findings)["window-effect"]
    assert finding.numbers["after_without_window_entropy"] == pytest.approx(math.log(260))
    assert finding.status == "problem" and finding.value is not None and finding.value < -1
    assert '"sliding_window": 512' in finding.remedy and "patcher_config" in finding.remedy


def test_short_text_is_said() -> None:
    finding = named(check(Bundle(None, scorer(512), RULE, {}), [text(1000)]).findings)["window-effect"]
    assert finding.value is None and "at least 1,024 bytes" in finding.expected


@pytest.mark.parametrize("place", ["patcher_config.sliding_window", "local_attention_window_len", "both"])
def test_a_config_without_the_field(place: str, tmp_path: Path) -> None:
    directory = hugging_face(tmp_path / "hf")
    assert "window-field" not in named(check_directory(directory, [text()]).findings)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    if place != "local_attention_window_len":
        del config["patcher_config"]["sliding_window"]
    if place != "patcher_config.sliding_window":
        del config["local_attention_window_len"]
    path.write_text(json.dumps(config))
    finding = named(check_directory(directory, [text()]).findings)["window-field"]
    assert finding.status == "warning" and str(path) in finding.expected
    assert ("sliding_window" in finding.cause) == (place != "local_attention_window_len")
    assert ("local_attention_window_len" in finding.cause) == (place != "patcher_config.sliding_window")
    assert "= 512" in finding.remedy and "null" in finding.remedy


def test_a_file_that_says_null_needs_no_field(tmp_path: Path) -> None:
    rows = named(check_directory(hugging_face(tmp_path / "hf", None), [text()]).findings)
    assert "window-field" not in rows
    assert rows["lost-window"].status != "ok" and "sliding_window" in rows["lost-window"].remedy


def test_a_threshold_that_is_too_low_for_a_text() -> None:
    """As in the public report: 8,192 bytes are cut into 7,000 patches. The remedy is a number."""
    model, data = scorer(), text(8192)
    pieces = score_pieces(model, [data[: int(0.8 * 8192)]], 2048)
    scores = torch.cat(list(pieces.scores or ()))
    low = ThresholdRule(threshold=float(scores.quantile(0.14)))
    rows = named(check(Bundle(None, model, low, {}), [data], files=["report.txt"]).findings)
    finding = rows["borders-too-frequent"]
    assert finding.status == "problem" and finding.value == pytest.approx(8192 / 7000, rel=0.05)
    threshold = rows["patch-size"].numbers["threshold_for_wanted"]
    assert threshold is not None and f"threshold {threshold:g} would give 4.5" in finding.remedy
    assert "`blt calibrate --model MODEL --files report.txt --patch-bytes 4.5`" in finding.remedy
    held_out = score_pieces(model, [data[int(0.8 * 8192) :]], 2048)
    assert patch_sizes(ThresholdRule(threshold=threshold), held_out).mean == pytest.approx(4.5, rel=0.02)


def test_the_recorded_size_is_the_goal_where_there_is_one() -> None:
    rows = named(check(Bundle(None, scorer(), RULE, {"mean_patch_bytes": 3.0}), [text()]).findings)
    assert rows["patch-size"].numbers["wanted_patch_bytes"] == 3.0
    assert "would give 3 (measured in training)" in rows["patch-size"].detail[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "model", Bundle(blt(), scorer(), RULE, {"row_bytes": 256}))
    (tmp_path / "text.txt").write_bytes(text(20_000))
    return tmp_path / "model"


def blt_check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Status, findings by name, stderr."""
    capsys.readouterr()
    status = cli.main(["check", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["findings"] if captured.out else []
    return status, {row["name"]: row for row in rows}, captured.err


def test_a_wanted_size_gives_what_calibrate_stores(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = model.parent / "text.txt"
    rows = blt_check(capsys, model, "--files", file, "--patch-bytes", "4.5")[1]
    finding = rows["wanted-patch-size"]
    assert load_bundle(model).rule == RULE, "nothing is stored"
    command = finding["detail"][-1].removeprefix("to store it: ").split()
    assert command[0] == "blt" and cli.main([*command[1:], "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert stored["threshold"] == finding["numbers"]["threshold"]
    assert stored["mean_patch_bytes"] == finding["value"] == pytest.approx(4.5, rel=0.02)
    assert getattr(load_bundle(model).rule, "threshold", None) == finding["numbers"]["threshold"]
    again = blt_check(capsys, model, "--files", file, "--patch-bytes", "4.5")[1]["wanted-patch-size"]
    assert again["numbers"]["patch_bytes_now"] == pytest.approx(stored["mean_patch_bytes"])


def test_a_size_out_of_reach_is_a_warning(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = blt_check(capsys, model, "--files", model.parent / "text.txt", "--patch-bytes", "1e6")[1]
    finding = rows["wanted-patch-size"]
    assert (finding["status"], finding["value"]) == ("warning", None)
    assert "can reach" in finding["cause"] and "entropy-drift" in rows


@pytest.mark.parametrize("size", ["0.5", "nan", "inf", "-3"])
def test_a_size_that_is_none(size: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows, err = blt_check(capsys, model, "--patch-bytes", size)
    assert (status, rows) == (2, {}) and err.count("\n") == 1 and "patch_bytes" in err


def test_a_rule_without_a_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_bundle(tmp_path / "space", Bundle(blt(), None, parse_rule("space"), {}))
    status, _, err = blt_check(capsys, tmp_path / "space", "--patch-bytes", "4.5")
    assert status == 2 and err.count("\n") == 1 and "no threshold to calibrate" in err
    with pytest.raises(ValueError, match="no threshold"):
        check(Bundle(blt(), None, parse_rule("space"), {}), [text()], wanted=WantedSize(4.5, (), "m"))


def test_weights_are_looked_at_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "WEIGHTS_AT_ONCE", 100)
    bundle = Bundle(blt(), scorer(), RULE, {})
    assert bundle.model is not None
    with torch.no_grad():
        bundle.model.embed.bytes.weight[[3, 200], 5] = torch.nan
    told: list[tuple[int, int]] = []
    (finding,) = findings.weight_findings(bundle, lambda done, total: told.append((done, total)))
    assert finding.value == 2
    assert told[-1][0] == told[-1][1] and max(b - a for (a, _), (b, _) in itertools.pairwise(told)) <= 400


def test_progress_is_told(model: Path) -> None:
    told: list[str] = []
    check_directory(model, [text()], progress=told.append)
    for beginning in ("files: ", "loading", "weights: ", "alignment", "scores: ", "patch sizes", "entropies"):
        assert any(line.startswith(beginning) for line in told), beginning


@pytest.mark.parametrize("layout", ["hub", "original", "original, the folder around it"])
def test_a_directory_in_meta_layout_says_convert(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_hub(tmp_path / "meta") if layout == "hub" else write_original(tmp_path / "meta")
    folder = folder / "blt" if layout == "original" else folder
    status, rows, err = blt_check(capsys, folder)
    assert (status, rows) == (2, {}) and err.count("\n") == 1
    assert f"blt convert {folder} DIR" in err


def test_a_converted_directory_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_hub(tmp_path / "meta")
    assert cli.main(["convert", str(folder), str(tmp_path / "ours"), "--json"]) == 0
    rows = blt_check(capsys, tmp_path / "ours")[1]
    assert rows["files"]["status"] == "ok" and "sha256" in rows["files"]["expected"]
    weights = tmp_path / "ours" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    status, rows, _ = blt_check(capsys, tmp_path / "ours")
    assert status == 1 and rows["files"]["status"] == "problem" and "model.safetensors" in rows["files"]["expected"]
