"""The wheel: built from the sources, installed into an environment of its own, and run."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command that must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment(tmp_path: Path) -> None:
    """The package comes from the wheel alone; its dependencies, a gigabyte, are those of the running environment."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty", cwd=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    installed = run(python, "-c", "import bltkit; print(bltkit.__file__)", cwd=tmp_path).strip()
    assert Path(installed).is_relative_to(tmp_path / "empty")
    # Behind the environment's own packages, and without the .pth file of an editable installation.
    elsewhere = {"PYTHONPATH": sysconfig.get_path("purelib"), "NO_COLOR": "1"}
    where = "import bltkit; print(bltkit.__file__)"
    packages = Path(installed).parents[1]
    elsewhere["PYTHONPATH"] = os.pathsep.join([str(packages), elsewhere["PYTHONPATH"]])
    assert run(python, "-c", where, cwd=tmp_path, **elsewhere).strip() == installed
    blt = tmp_path / "empty" / "bin" / "blt"
    assert "patches" in run(blt, "patch", "Patches are a value.", cwd=tmp_path, **elsewhere)
    assert run(blt, "generate", "def ", "--max-bytes", "20", "--seed", "0", cwd=tmp_path, **elsewhere).strip()
