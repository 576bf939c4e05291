"""A real browser without a screen, where the machine has one."""

from __future__ import annotations

import shutil
import subprocess
import unittest
from pathlib import Path

from tests.helpers.late import tempfile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# As root, and without asking anybody on the network.
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars"),
)
LOAD_SECONDS = 50

needs_browser = unittest.skipUnless(CHROMIUM, "there is no Chromium to look at a page with")


def page_of(address: str, size: str = "1200,1600", picture: Path | None = None) -> tuple[str, list[str]]:
    """Load a page; return its elements after its scripts have run, and what its console says.

    With `picture`, a PNG of it is written there in the place of the elements.
    """
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        what = "--dump-dom" if picture is None else f"--screenshot={picture}"
        loaded = subprocess.run(
            [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", f"--window-size={size}", what, address],
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS,
        )
    assert loaded.returncode == 0, loaded.stderr
    return loaded.stdout, [line for line in loaded.stderr.splitlines() if ":CONSOLE" in line]
