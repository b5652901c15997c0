"""The page at `/docs` in a real browser: its files and the OpenAPI document have to fit one another."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve_client import saved_model, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_page_shows_every_route(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    with serve(saved_model(tmp_path / "random"), "--context", "48") as served:
        browser = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000"]
        command = [*browser, "--dump-dom", f"{served.url}/docs"]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "Unable to render" not in page
    for route in ("/v1/completions", "/v1/chat/completions", "/v1/patches", "/metrics"):
        assert f'data-path="{route}"' in page, route
