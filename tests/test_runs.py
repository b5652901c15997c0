"""The scripts in runs/, cut to a few steps: each line works, and a second run goes on where the first one stopped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bltkit.checkpoint import load_bundle

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))


def run(script: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in another directory than the repository's, as a user might."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        ["sh", str(ROOT / "runs" / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": path, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_is_valid_shell_and_names_what_exists(script: Path) -> None:
    checked = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    named = re.findall(r"configs/?\"?/?([\w-]+\.toml)", script.read_text(encoding="utf-8"))
    assert all((ROOT / "configs" / name).exists() for name in named), named


@pytest.mark.slow
def test_tiny_makes_a_model_from_nothing_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "my text.txt").write_text("Some text of one's own.\n" * 400, encoding="utf-8")
    out = tmp_path / "out"
    first = run("tiny.sh", "my text.txt", cwd=tmp_path, OUT=str(out), STEPS="2")
    # Two steps make a sick model; that `blt check` says so is the last thing that happens.
    assert first.returncode in (0, 1) and "future-leak" in first.stdout, first.stderr
    assert "def main(" not in first.stdout and "Traceback" not in first.stderr
    bundle = load_bundle(out / "blt")
    assert bundle.record["steps"] == 2 and bundle.rule is not None and bundle.rule.kind == "threshold"
    again = run("tiny.sh", "my text.txt", cwd=tmp_path, OUT=str(out), STEPS="2")
    assert again.returncode == first.returncode and again.stderr.count("is at step 2 already") == 2, again.stderr
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_mixture_annotates_calibrates_trains_scores_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    words = {"one": "a word of the first ", "two": "def second(): return ", "три": "слово третьего языка "}
    for name, text in words.items():
        lines = [json.dumps({"text": f"{number} " + text * 9}) for number in range(120)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files, out = [f"{name}.jsonl" for name in words], tmp_path / "out"
    first = run("mixture.sh", *files, cwd=tmp_path, OUT=str(out), STEPS="2", WEIGHTS="1 2 0.5")
    assert first.returncode == 0, first.stderr
    scored = re.findall(r"^(\S+\.jsonl):\n\d\.\d+ bits per byte over \d+ bytes", first.stdout, flags=re.MULTILINE)
    assert scored == files, first.stdout
    held = [
        document for path in sorted((out / "held").glob("held-*.txt")) for document in path.read_text().splitlines()
    ]
    bundle = load_bundle(out / "blt")
    assert bundle.rule is not None and f"{bundle.rule}: " in first.stdout, "calibrated, and taken over"
    sources = bundle.record["sources"]
    assert [source["weight"] for source in sources] == [1.0, 2.0, 0.5]
    assert sum(source["validation_documents"] for source in sources) == len(held), "scored is what was held back"
    assert bundle.record["config"]["data"]["row_patches"] == 512
    annotated = (out / "annotated" / "manifest.json").stat().st_mtime_ns
    again = run("mixture.sh", *files, cwd=tmp_path, OUT=str(out), STEPS="2", WEIGHTS="1 2 0.5")
    assert again.returncode == 0 and again.stderr.count("is at step 2 already") == 2, again.stderr
    assert (out / "annotated" / "manifest.json").stat().st_mtime_ns == annotated
    assert again.stdout.splitlines()[-6:] == first.stdout.splitlines()[-6:]
