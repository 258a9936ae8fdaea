"""Reports of every kind, and the Chromium that reads them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import reports
from tests.browser.reader import Reader, chromium, launched


@pytest.fixture(scope="session")
def chromium_path() -> str:
    path = chromium()
    if path is None:
        pytest.skip("no report was opened in a browser: install chromium, or set CHROMIUM to its path")
    return path


@pytest.fixture(scope="session")
def texts(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.text_report(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def bench(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.bench_report(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def images(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.image_report(tmp_path_factory.mktemp("images"))


@pytest.fixture(params=["texts", "bench", "images"])
def report(request: pytest.FixtureRequest) -> Path:
    """The folder of a report, of every kind in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with launched(chromium_path) as browser:
        yield browser


@pytest.fixture
def read(browser: Browser) -> Iterator[Callable[[Path], Reader]]:
    """Reads a report's folder. When the test is over, nothing may have happened that must not."""
    readers: list[Reader] = []

    def start(folder: Path) -> Reader:
        readers.append(Reader(browser, folder))
        return readers[-1]

    yield start
    for reader in readers:
        reader.page.close()
        assert not reader.problems
