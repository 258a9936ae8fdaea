"""Every page of a report, as Chromium shows it from a folder without a network."""

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser.checks import check_contrast, check_keyboard, check_structure, check_width
from tests.browser.reader import NARROW, WIDE, Reader
from tests.browser.reports import IMAGE, LABELS, SCRIPT, TEXT

Read = Callable[[pathlib.Path], Reader]

CELLS = "cells => cells.map((cell) => cell.dataset.value ?? cell.textContent.trim())"
INKS = '() => [...document.querySelectorAll(".plot text")].map((text) => getComputedStyle(text).fill)'


def test_every_page_keeps_to_its_folder_and_can_be_read_by_anyone(read: Read, report: pathlib.Path) -> None:
    reader = read(report)
    assert "index.html" in reader.addresses()
    for address in reader.addresses():
        page = reader.open(address)
        check_structure(page)
        check_width(page)
        check_contrast(page)
        by_day = set(page.evaluate(INKS))
        reader.look("dark", NARROW)
        check_width(page)
        check_contrast(page)
        assert not by_day & set(page.evaluate(INKS)), f"{address}: a chart is in the same ink by day and by night"
        check_keyboard(page)
        reader.look("light", WIDE)


def test_charts_are_drawn(read: Read, report: pathlib.Path) -> None:
    reader = read(report)
    page = reader.open("index.html")
    charts = page.locator(".plot").all()
    assert len(charts) >= 4
    for chart in charts:
        box = chart.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 200
        paths = chart.locator(".scatterlayer path.js-line").all()
        assert any(len(path.get_attribute("d") or "") > 10 for path in paths)
        assert (chart.locator(".xtitle").text_content() or "").strip()
        assert (chart.locator(".ytitle").text_content() or "").strip()


def test_a_table_sorts_by_click_and_by_keyboard(read: Read, texts: pathlib.Path) -> None:
    reader = read(texts)
    table = reader.open("index.html").locator("table.sortable").first
    places = [i for i, head in enumerate(table.locator("thead th").all()) if head.locator("button").count()]
    assert len(places) > 5
    for place in places:
        head = table.locator("thead th").nth(place)
        button, orders = head.get_by_role("button"), []
        for press in ("click", "click", "Enter", "Space"):
            if press == "click":
                button.click()
            else:
                button.press(press)
            cells = table.locator(f"tbody tr > :nth-child({place + 1})").evaluate_all(CELLS)
            numeric = "number" in (head.get_attribute("class") or "")
            there = [cell for cell in cells if cell]
            assert cells[: len(there)] == there  # what has no figure comes last in both orders
            keys = [float(cell) for cell in there] if numeric else [cell.casefold() for cell in cells]
            orders.append(head.get_attribute("aria-sort"))
            assert keys == sorted(keys, reverse=orders[-1] == "descending"), (place, orders)
            assert table.locator("[aria-sort]").count() == 1
        assert orders == (["descending", "ascending"] * 2 if numeric else ["ascending", "descending"] * 2)


def test_hostile_text_is_text(read: Read, texts: pathlib.Path) -> None:
    reader = read(texts)
    seen = ""
    for address in reader.addresses():
        page = reader.open(address)
        assert page.evaluate("document.querySelectorAll('script:not([src], [type=\"application/json\"])').length") == 0
        assert page.locator("img[src=x], main b").count() == 0
        seen += page.locator("body").inner_text()
    for text in (*TEXT, *LABELS, SCRIPT.replace("/", "")):
        if text.isprintable():
            assert text in seen, text
    assert seen.count(IMAGE) > 3
    for visible in ("␀", "↵", "·right to left", "[31m"):
        assert visible in seen, visible
    assert not set(seen) & {"\0", "\x1b", "\u202e"}


def test_a_page_that_leaves_its_folder_or_fails_is_noticed(browser: Browser, tmp_path: pathlib.Path) -> None:
    """The reader's own test: a page with everything that a report must not do."""
    (tmp_path / "report").mkdir()
    (tmp_path / "outside.js").write_text("")
    (tmp_path / "report" / "index.html").write_text(
        '<title>x</title><script src="../outside.js"></script><script src="missing.js"></script>'
        "<img src=x onerror=alert(1)><script>console.error('heard'); nothing();</script>"
        '<script>fetch("http://127.0.0.1:9/").catch(() => {})</script><main><p style="width: 600px">wide</p></main>'
    )
    reader = Reader(browser, tmp_path / "report")
    page = reader.open("index.html")
    reader.look("light", NARROW)
    page.wait_for_load_state("networkidle")
    found = "\n".join(reader.problems)
    for kind in ("outside: file:", "outside: http", "unanswered", "dialog: 1", "console: heard", "error: nothing"):
        assert kind in found, kind
    with pytest.raises(AssertionError):
        check_width(page)


PAGE = '<html lang="en"><title>t</title><main><h1>1</h1><h2>2</h2><a href="#">link</a><button>b</button>{}</main>'


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (check_structure, '<svg role="img"></svg>'),
        (check_structure, "<img src='data:,'>"),
        (check_structure, "<input>"),
        (check_structure, "<h4>gap</h4>"),
        (check_structure, "<h1>again</h1>"),
        (check_structure, "<p id=a><p id=a>"),
        (check_keyboard, "<button style='outline: none'>b</button>"),
        (check_keyboard, "<button tabindex=1>first</button>"),
        (check_contrast, "<p style='color: #777'>4.48 to 1"),
        (check_contrast, "<p style='color: #000; opacity: 0.5'>3.98 to 1"),
        (
            check_contrast,
            "<p style='background: #000'><b style='background: #ffffff80; color: #fff'>3.95 to 1</b>",
        ),
        (check_contrast, "<svg aria-label=s><text y=20 style='fill: #777'>4.48 to 1</text></svg>"),
    ],
)
def test_a_page_that_some_cannot_read_is_noticed(browser: Browser, check: Callable[[Page], None], wrong: str) -> None:
    with browser.new_page(color_scheme="light") as page:
        page.set_content(PAGE.format(""))
        check(page)
        page.set_content(
            PAGE.format("<p style='color: #767676'>4.54 to 1<p style='font-size: 24px; color: #949494'>3.03")
        )
        check(page)
        page.set_content(PAGE.format(wrong))
        with pytest.raises(AssertionError):
            check(page)


def test_the_screenshot_is_of_the_first_screen(chromium_path: str, texts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "tests.browser.screenshot", str(texts), str(tmp_path / "shot.png")]
    subprocess.run(command, check=True)
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (1200, 900)
        assert len(shot.convert("RGB").getcolors(1_000_000) or []) > 50
