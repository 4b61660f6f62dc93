"""A headless Chromium, driven over the pipes of its DevTools protocol: no package and no open port."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

__all__ = ["BROWSER", "Page", "browsing"]

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

_PATIENCE = 60
_PROBLEMS = {(level, source) for level in ("warning", "error") for source in ("javascript", "security", "violation")}
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    " ": 32,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowRight": 39,
}
"""Keys with their numbers."""


class Page:
    """A page of the browser: events of it are kept, commands wait for their answers.

    Attributes:
        requests: Addresses that it asked for.
        dialogs: Texts of the dialogs that it opened.
        problems: What scripts threw, and what the browser refused or warned of.
    """

    def __init__(self, to_browser: Any, from_browser: Any) -> None:
        self._to, self._number, self._session = to_browser, 0, ""
        self._messages: Queue[dict[str, Any]] = Queue()
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.problems: list[str] = []
        Thread(target=self._read, args=[from_browser], daemon=True).start()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.send(f"{domain}.enable")

    def _read(self, from_browser: Any) -> None:
        rest = b""
        while part := from_browser.read1(1 << 16):
            *whole, rest = (rest + part).split(b"\0")
            for each in whole:
                self._messages.put(json.loads(each))
        self._messages.put({"error": {"message": "the browser ended"}, "id": None})

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command, and return its answer."""
        number = self._put(method, parameters)
        while True:
            try:
                message = self._messages.get(timeout=_PATIENCE)
            except Empty:
                raise AssertionError(f"the browser does not answer {method}") from None
            if message.get("id", 0) in (number, None):
                break
            self._note(message.get("method"), message.get("params", {}))
        if "error" in message:
            raise AssertionError(f"{method}: {message['error']['message']}")
        return message["result"]

    def _put(self, method: str, parameters: dict[str, Any]) -> int:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._to.write(json.dumps(command).encode() + b"\0")
        self._to.flush()
        return self._number

    def _note(self, event: str | None, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(told["message"])
            self._put("Page.handleJavaScriptDialog", {"accept": False})
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(told["exceptionDetails"].get("exception", told)))
        # An answer with an error is no problem: pages show it.
        elif event == "Log.entryAdded" and (told["entry"]["level"], told["entry"]["source"]) in _PROBLEMS:
            self.problems.append(told["entry"]["text"])

    def open(self, url: str) -> None:
        """Go to an address, and wait until what is there has been shown once."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression, which may be a promise."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression, or what it promises, is true."""
        for _ in range(_PATIENCE * 50):
            if self.run(f"(async () => Boolean(await ({condition})))()"):
                return
            time.sleep(0.02)
        raise AssertionError(f"it did not happen: {condition}; the page says {self.run('document.body.innerText')!r}")

    def answered(self) -> None:
        """Wait until the newest question has its answer or its error."""
        self.until("document.getElementById('answer').ariaBusy === 'false'")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements that a selector finds."""
        return self.each(selector, "each.textContent")

    def each(self, selector: str, expression: str) -> list[Any]:
        """Return the value of an expression about `each` of the elements that a selector finds."""
        found: list[Any] = self.run(f"[...document.querySelectorAll({selector!r})].map(each => {expression})")
        return found

    def press(self, key: str, *, shift: bool = False, times: int = 1) -> None:
        """Press a key."""
        for _ in range(times):
            pressed: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": 8 if shift else 0}
            text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
            self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **pressed, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def write(self, text: str) -> None:
        """Type a text into the field that has the focus, in place of what is there."""
        self.send("Input.dispatchKeyEvent", type="rawKeyDown", key="a", modifiers=2, commands=["selectAll"])
        self.send("Input.dispatchKeyEvent", type="keyUp", key="a", modifiers=2)
        self.send("Input.insertText", text=text)

    def place(self, selector: str, at: int = 0) -> tuple[float, float]:
        """Return the middle of an element, once it is in view."""
        x, y = self.run(
            f"(() => {{ const each = document.querySelectorAll({selector!r})[{at}];"
            "each.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = each.getClientRects()[0];"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return x, y

    def click(self, selector: str, at: int = 0) -> None:
        """Click an element with the mouse."""
        self.point(selector, at)
        x, y = self.place(selector, at)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def point(self, selector: str, at: int = 0) -> None:
        """Rest the mouse on an element."""
        x, y = self.place(selector, at)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, selector: str, at: int = 0) -> None:
        """Touch an element."""
        x, y = self.place(selector, at)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screen(self, width: int, height: int, *, touch: bool = False, dark: bool = False, scale: float = 1) -> None:
        """Set the size of the window, the kind of its pointer, and the colours that its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.send("Emulation.setDeviceMetricsOverride", **size, mobile=touch)
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def roles(self) -> list[tuple[str, str]]:
        """Return the role and the name of each element, as a screen reader gets them."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]

    def picture(self) -> bytes:
        """Return the whole page as a PNG file."""
        whole = self.send("Page.getLayoutMetrics")["cssContentSize"] | {"scale": 1}
        content: str = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=whole)["data"]
        return base64.b64decode(content)


@contextmanager
def browsing() -> Iterator[Page]:
    """Start the browser, and yield a page of it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in ("in", "out"):
            os.mkfifo(Path(folder, name))
        # The protocol's pipes are the descriptors 3 and 4. Its own sandbox does not start for root or in containers.
        options = ["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        command = ["sh", "-c", 'exec "$@" 3< in 4> out', "sh", str(BROWSER), *options]
        with (
            subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as browser,
            Path(folder, "in").open("wb") as to_browser,
            Path(folder, "out").open("rb") as from_browser,
        ):
            try:
                yield Page(to_browser, from_browser)
            finally:
                # Before the pipes are closed: a thread reads from one.
                browser.terminate()
                browser.wait()
