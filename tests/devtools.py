"""A real browser for tests, over the DevTools protocol on a pair of pipes: no driver and no library in between."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# the protocol is spoken on descriptors 3 and 4
_ON_3_AND_4 = """import os, sys
fds = [os.dup(int(fd)) for fd in sys.argv[1:3]]
for fd, spoken in zip(fds, (3, 4)):
    os.dup2(fd, spoken)
    os.set_inheritable(spoken, True)
os.execv(sys.argv[3], sys.argv[3:])"""
_START_S, _ANSWER_S = 30.0, 15.0


def browser_path() -> str:
    """The browser's path; the test skips where there is none. PHYSVLM_CHROMIUM names one that is not in PATH."""
    named = os.environ.get("PHYSVLM_CHROMIUM", "")
    found = named or next(filter(None, map(shutil.which, NAMES)), "")
    if not found or not os.access(found, os.X_OK):
        pytest.skip(f"no Chromium ({', '.join(NAMES)}); install one or name it in PHYSVLM_CHROMIUM")
    return found


class PageError(AssertionError):
    """The browser refused, or a script on the page threw."""


class Browser:
    """Chromium without a window. open() gives tabs; whatever a page throws or logs as an error is kept in `complaints`."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._write_fd = os.pipe()
        self._read_fd, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_3_AND_4, str(to_browser), str(from_browser), browser_path(), "--headless",
             "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-extensions", f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self._ids = itertools.count(1)
        self._buffer = b""
        self.complaints: list[str] = []
        self.requests: list[str] = []  # every address that a page asked for
        self.call("Browser.getVersion", timeout_s=_START_S)

    def open(self, url: str, width: int = 1280, height: int = 900, scale: float = 1, mobile: bool = False) -> Tab:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height, scale, mobile)
        tab.call("Page.navigate", {"url": url})
        tab.until("location.href !== 'about:blank' && document.readyState === 'complete'", _ANSWER_S)
        return tab

    def call(self, method: str, params: dict[str, Any] | None = None, session: str | None = None,
             timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        until_s = time.monotonic() + timeout_s
        while True:
            answer = self._receive(until_s, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, until_s: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read_fd], [], [], max(0.0, until_s - time.monotonic()))[0]:
                raise PageError(f"{method}: no answer from the browser in time")
            data = os.read(self._read_fd, 1 << 20)
            if not data:
                raise PageError(f"{method}: the browser ended (exit {self._process.poll()})")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def close(self) -> None:
        try:
            self.call("Browser.close", timeout_s=5)
            self._process.wait(timeout=10)
        except (PageError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write_fd)
        os.close(self._read_fd)


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def resize(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride",
                  {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        result = self.call("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in result:
            raise PageError(result["exceptionDetails"].get("exception", {}).get("description") or str(result))
        return result["result"].get("value")

    def until(self, script: str, timeout_s: float, period_s: float = 0.05) -> float:
        """Seconds until the expression was true."""
        start_s = time.monotonic()
        while not self.run(script):
            if time.monotonic() - start_s > timeout_s:
                raise PageError(f"not true within {timeout_s:g} s: {script}")
            time.sleep(period_s)
        return time.monotonic() - start_s

    def screenshot(self, path: Path) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.call("Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(image["data"]))
