"""A real browser without a screen, where the machine has one."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

from tests.helpers.late import tempfile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# As root, and without asking anybody on the network.
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars"),
)
LOAD_SECONDS = 50
# The browser wants its two descriptors as 3 and 4.
_LAUNCH = """
import fcntl, os, sys
for wanted, given in enumerate([fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]], 3):
    os.dup2(given, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""

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


class Tab:
    """A page in a browser that stays, and is asked about it: over two descriptors, in the protocol of its own tools."""

    def __init__(self, address: str, width: int = 1200, height: int = 1600, *, dark: bool = False) -> None:
        assert CHROMIUM is not None
        self._profile = tempfile.TemporaryDirectory()
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, f"{to_browser}", f"{from_browser}", CHROMIUM, *SWITCHES),
                *("--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"),
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._held = b""
        self._number = 0
        self._session: str | None = None
        # What the console says, and what the page raises.
        self.console: list[str] = []
        try:
            self._open(address, width, height, dark)
        except BaseException:
            self.close()
            raise

    def _open(self, address: str, width: int, height: int, dark: bool) -> None:
        target = next(each for each in self.ask("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Page.navigate", url=address)

    def ask(self, method: str, **what: Any) -> Any:
        """Return the answer of the browser; raises AssertionError where that is an error."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": what}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(told["params"]["exceptionDetails"]))
            elif told.get("method") == "Runtime.consoleAPICalled":
                self.console.append(str(told["params"]["args"]))
            elif told.get("method") == "Log.entryAdded":
                self.console.append(str(told["params"]["entry"]["text"]))

    def _next(self) -> Any:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._read], [], [], LOAD_SECONDS)
            read = os.read(self._read, 1 << 20) if ready else b""
            assert read, "the browser says nothing"
            self._held += read
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)

    def resize(self, width: int, height: int) -> None:
        """Have a window of that size, which is that of a phone where it is narrow."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives in the page, with what it promises."""
        told = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        self.value(
            "new Promise((done) => { const look = () => { try { if (" + condition + ") return done(true); } "
            "catch (error) {} setTimeout(look, 20); }; look(); })"
        )

    def picture(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """Write a PNG of the whole page, or of a part of it."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"], "scale": 1}
        taken = self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        try:
            self._process.wait(LOAD_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._profile.cleanup()

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
