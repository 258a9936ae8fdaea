"""Chromium reading a report, and whatever happens there that a report must not do."""

import os
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, sync_playwright

OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Scheme = Literal["light", "dark"]
WIDE, NARROW = 1400, 500
"""Widths in CSS pixels that every page is looked at in."""
DRAWN = """[...document.querySelectorAll(".plot")].every((place) => {
  const drawing = place.querySelector(".main-svg, canvas");
  return drawing && Math.abs(drawing.getBoundingClientRect().width - place.clientWidth) < 2;
})"""


def chromium() -> str | None:
    """The browser's path: that of the environment's CHROMIUM, or the system's."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


class Reader:
    """One page of a browser that reads the report in `folder`.

    `problems` has a line for every error of a script, message on the console, dialog, request that leaves the folder
    and request that is not answered.
    """

    def __init__(self, browser: Browser, folder: pathlib.Path) -> None:
        self.folder = folder.resolve()
        self.problems: list[str] = []
        self.page = browser.new_page(color_scheme="light", viewport={"width": WIDE, "height": 1000})
        self.page.on("console", self._heard)
        self.page.on("dialog", self._asked)
        self.page.on("pageerror", lambda error: self._found("error", str(error)))
        self.page.on("request", self._requested)
        self.page.on("requestfailed", lambda request: self._found("unanswered", request.url))
        self.page.on("websocket", lambda socket: self._found("outside", socket.url))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":  # warnings are also Chromium's own, of its driver
            self._found("console", message.text)

    def _asked(self, dialog: Dialog) -> None:
        self._found("dialog", dialog.message)
        dialog.dismiss()

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:", self.folder.as_uri() + "/")):
            self._found("outside", request.url)

    def _found(self, kind: str, what: str) -> None:
        self.problems.append(f"{self.page.url}: {kind}: {what}")

    def open(self, address: str) -> Page:
        """`address`: relative to the report's folder, with or without `#…`. Waits until the charts are drawn."""
        path, hash_, state = address.partition("#")
        self.page.goto((self.folder / path).as_uri() + hash_ + state)
        self.settle()
        return self.page

    def look(self, scheme: Scheme, width: int) -> None:
        """Look at the open page in another colour scheme or width."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": width, "height": 1000})
        self.settle()

    def settle(self) -> None:
        """Wait until every chart is drawn and as wide as its place: Plotly makes them fit a little later."""
        self.page.wait_for_function(DRAWN)
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def addresses(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*.html"))
