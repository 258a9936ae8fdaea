"""The feature browser in Chromium: links, search, keys, order, and two dictionaries side by side."""

import pathlib
import shutil
from collections.abc import Callable
from functools import partial

import pytest
from playwright.sync_api import Page
from safetensors.numpy import load_file

from analyze.report import build
from analyze.report.browser import write_browser
from analyze.report.formats import visible
from tests.browser.checks import check_contrast, check_keyboard, check_structure, check_width
from tests.browser.reader import NARROW, Reader
from tests.report_data import ANCHORS, SCRIPT, VOCABULARY, write_results

Read = Callable[[pathlib.Path], Reader]
NAMES = ("sae", "sae-anchored", "patches", "bare")
AT_THE_TOP = """() => {
  const rows = document.getElementById("rows");
  return !rows.children.length || rows.querySelector("[aria-posinset='1']");
}"""
LATENTS = 300
"""More than a pack has."""


@pytest.fixture(scope="module")
def results(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = write_results(tmp_path_factory.mktemp("results"), LATENTS, NAMES)
    shutil.copytree(build.HERE / "static", folder / "report/static")
    for name in NAMES:
        write_browser(name, folder / "analyze" / name, folder / "train" / name, folder / "report", NAMES, "tiny")
    return folder


@pytest.fixture
def reader(read: Read, results: pathlib.Path) -> Reader:
    return read(results / "report")


def opened(reader: Reader, address: str) -> Page:
    page = reader.open(f"features/{address}")
    page.wait_for_selector("#latents article")
    return page


def shown(page: Page, place: int = 0) -> str:
    """Which latent is shown, once the page says that it is all there."""
    return page.locator("#latents article").nth(place).get_attribute("aria-label") or ""


def listed(page: Page) -> list[int]:
    """The latents at the top of the list, as many as are in view there."""
    page.locator("#list").evaluate("box => { box.scrollTop = 0; }")
    page.wait_for_function(AT_THE_TOP)
    rows = page.locator("#rows [role=option]").evaluate_all(
        "rows => rows.map((row) => [Number(row.getAttribute('aria-posinset')), Number(row.dataset.latent)])"
    )
    return [latent for _, latent in sorted(rows)]


def goes_to(page: Page, act: Callable[[], object], latent: int) -> None:
    act()
    page.wait_for_selector(f"#latents article[aria-label^='Latent {latent} of']")
    assert page.evaluate("location.hash").partition("&")[0] == f"#{latent}"


@pytest.mark.parametrize("name", NAMES)
def test_its_pages_can_be_read_by_anyone(reader: Reader, name: str) -> None:
    page = opened(reader, f"{name}.html#7")
    check_structure(page)
    check_width(page)
    check_contrast(page)
    reader.look("dark", NARROW)
    check_width(page)
    check_contrast(page)
    check_keyboard(page)


def test_a_link_opens_its_latent(reader: Reader) -> None:
    page = opened(reader, "sae.html#299")
    assert shown(page) == "Latent 299 of sae"
    assert "Latent 299" in page.title()
    link = page.locator("#latents a[href^='#']").nth(1)
    goes_to(page, link.click, int((link.get_attribute("href") or "")[1:].partition("&")[0]))
    page.go_back()
    page.wait_for_selector("#latents article[aria-label^='Latent 299 of']")
    address = page.url
    page.reload()
    page.wait_for_selector("#latents article")
    assert (page.url, shown(page)) == (address, "Latent 299 of sae")


@pytest.mark.parametrize("wanted", [" river", "<!--", "🤗", "\0", "\u202eright to left", "שלום"])
def test_search_finds_a_token(reader: Reader, wanted: str) -> None:
    """It is the peak of every latent `2 + i` that has it as the token `i`."""
    page = opened(reader, "sae.html#5")
    text = visible(wanted).strip()
    page.locator("[name=search]").fill(text)
    first = 2 + VOCABULARY.index(wanted)
    page.wait_for_function("location.hash.includes('search') && !document.querySelector('#row-0')")
    found = listed(page)
    assert first in found
    assert {(latent - 2) % len(VOCABULARY) for latent in found} == {first - 2}
    goes_to(page, lambda: page.keyboard.press("Enter"), found[0])
    assert page.locator("#latents header .chip").first.inner_text().strip() == text
    assert page.locator("#latents .peak").first.inner_text().strip() == text


def test_hostile_tokens_and_labels_are_text(reader: Reader) -> None:
    page = opened(reader, "sae.html#2")
    for place, token in enumerate(VOCABULARY):
        goes_to(page, partial(page.evaluate, f"location.hash = '{2 + place}'"), 2 + place)
        assert page.locator("#latents .peak").first.inner_text().strip() == visible(token).strip()
    assert SCRIPT in page.locator("#latents article").inner_text()
    assert page.locator("main script, main img[src=x]").count() == 0


def test_search_finds_a_number_and_a_label(reader: Reader) -> None:
    page = opened(reader, "sae.html#5")
    page.locator("[name=search]").fill("123")
    page.wait_for_function("document.querySelector('#rows [role=option]').dataset.latent === '123'")
    page.locator("[name=search]").fill("nynorsk")
    page.wait_for_function("document.querySelector('#rows [role=option]')?.textContent.includes('nynorsk')")
    goes_to(page, lambda: page.keyboard.press("Enter"), listed(page)[0])
    assert "nynorsk" in page.locator("#latents article").inner_text()


def test_keys_go_through_the_list(reader: Reader) -> None:
    page = opened(reader, "sae.html#&sort=index")
    goes_to(page, lambda: page.keyboard.press("j"), 1)
    goes_to(page, lambda: page.keyboard.press("ArrowRight"), 2)
    goes_to(page, lambda: page.keyboard.press("k"), 1)
    goes_to(page, lambda: page.keyboard.press("ArrowLeft"), 0)
    goes_to(page, lambda: page.get_by_role("button", name="next").click(), 1)
    page.keyboard.press("/")
    page.keyboard.type("jk")  # text in the search, not steps
    assert page.locator("[name=search]").input_value() == "jk"
    page.locator("[name=search]").fill("")
    page.keyboard.press("Escape")
    goes_to(page, lambda: page.keyboard.press("End"), LATENTS - 1)
    goes_to(page, lambda: page.keyboard.press("ArrowUp"), LATENTS - 2)
    page.keyboard.press("?")
    assert page.locator("dialog#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog#help").is_visible()


def test_the_list_sorts_and_filters(reader: Reader, results: pathlib.Path) -> None:
    firing_F = load_file(results / "analyze/sae-anchored/latents.safetensors")["firing"]
    page = opened(reader, "sae-anchored.html#5")
    page.locator("[name=sort]").select_option("rate")
    page.wait_for_function("location.hash.includes('sort=rate')")
    rates = firing_F[listed(page)].tolist()
    assert (rates, rates[0]) == (sorted(rates, reverse=True), firing_F.max())
    page.locator("[name=up]").click()
    page.wait_for_function("location.hash.includes('up=true')")
    rates = firing_F[listed(page)].tolist()
    assert (rates, rates[0]) == (sorted(rates), 0)
    for show, wanted in (("dead", [0]), ("dense", [1]), ("anchored", sorted(range(len(ANCHORS)), key=firing_F.item))):
        page.locator("[name=show]").select_option(show)
        page.wait_for_function("show => location.hash.includes(`show=${show}`)", arg=show)
        assert listed(page) == wanted
    assert "Dead" in opened(reader, "sae-anchored.html#0").locator("#latents article").inner_text()


def test_two_dictionaries_side_by_side(reader: Reader, results: pathlib.Path) -> None:
    partner_F = load_file(results / "stability/sae--sae-anchored.safetensors")["partner"].tolist()
    page = opened(reader, "sae.html#17")
    page.locator("[name=with]").select_option("sae-anchored")
    page.wait_for_selector("#latents.two")
    assert [shown(page, 0), shown(page, 1)] == ["Latent 17 of sae", f"Latent {partner_F[17]} of sae-anchored"]
    page.reload()
    page.wait_for_selector("#latents.two")
    assert shown(page, 1) == f"Latent {partner_F[17]} of sae-anchored"
    reader.look("dark", NARROW)
    check_width(page)
    check_contrast(page)


def test_the_heat_of_patches_is_drawn(reader: Reader) -> None:
    page = opened(reader, "patches.html#5")
    assert page.locator("#latents article img, #latents article [role=img]").count() > 5
    assert page.locator("[name=heat]").is_checked()
    page.locator("[name=heat]").uncheck()
    page.wait_for_selector("#latents.cold")
