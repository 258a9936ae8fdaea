"""A report as one file: all of its files are in it, none can end its script, and it is not too large."""

import base64
import html.parser
import json
import pathlib

import pytest

from analyze.report.browser import write_browser
from analyze.report.single import write_single_file
from harvest.errors import UserError
from tests.report_data import write_results

PAGE = '<!DOCTYPE html><title>x</title><script>alert(1)</script><a href="features/patches.html#3">latent 3</a>'


class Held(html.parser.HTMLParser):
    """Path -> text of the files in a page; `others` are its other scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.files: dict[str, str] = {}
        self.others: list[str] = []
        self.path: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.path = None
        if tag == "script":
            self.path = dict(attrs).get("data-file")
            if self.path is None:
                self.others.append("")

    def handle_data(self, data: str) -> None:
        if self.path is not None:
            self.files[self.path] = self.files.get(self.path, "") + data
        elif self.others:
            self.others[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.path = None


@pytest.fixture
def report(tmp_path: pathlib.Path) -> pathlib.Path:
    results = write_results(tmp_path, 10, ("patches",))
    folders = (results / part / "patches" for part in ("analyze", "train"))
    write_browser("patches", *folders, results / "report", ["patches"], "tiny")
    (results / "report/index.html").write_text(PAGE)
    return results / "report"


def test_one_file_holds_all_others(report: pathlib.Path) -> None:
    output = report / "single.html"
    write_single_file(report, output)
    write_single_file(report, output)  # it does not hold itself
    held = Held(output.read_text(encoding="utf-8"))
    assert set(held.files) == {
        path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file() and path != output
    }
    assert len(held.others) == 1
    assert "alert(1)" not in held.others[0]
    for path, text in held.files.items():
        data, found = (report / path).read_bytes(), json.loads(text)
        if path.endswith((".html", ".js")):
            assert found == data.decode("utf-16" if "/packs/" in path else "utf-8"), path
        else:
            assert base64.b64decode(found.partition(",")[2]) == data, path


def test_a_report_that_is_too_large_stays_a_folder(report: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"single-file: .*single.html: the report would take .* MB, and at most 0 MB"):
        write_single_file(report, report / "single.html", 10_000)
    assert not (report / "single.html").exists()
