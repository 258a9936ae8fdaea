"""`python -m tests.browser.screenshot REPORT OUTPUT.png`: the first screen of a report, as the README shows it."""

import pathlib
import sys

from tests.browser.reader import Reader, chromium, launched

WIDTH, HEIGHT = 1200, 900


def shoot(report: pathlib.Path, output: pathlib.Path) -> None:
    path = chromium()
    if path is None:
        sys.exit("error: install chromium, or set CHROMIUM to its path")
    with launched(path) as browser:
        reader = Reader(browser, report)
        page = reader.open("index.html")
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        reader.settle()
        page.screenshot(path=output)


if __name__ == "__main__":
    shoot(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
