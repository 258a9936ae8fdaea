"""What every page must be: as wide as the window, in order for a screen reader and the keyboard, and easy to read."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Page

TOO_WIDE = """() => [...document.querySelectorAll("main *")]
  .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .filter((element) => !element.closest(".scroll, svg, [aria-hidden=true]"))
  .map((element) => element.outerHTML.slice(0, 100))"""
FOCUSED = """() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  return {
    place: [...document.querySelectorAll("*")].indexOf(element),
    what: element.outerHTML.slice(0, 100),
    visible: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) || style.boxShadow !== "none",
  };
}"""
TABS = 40
"""Steps through a page by the tab key; longer pages repeat what they have."""
CONTRAST = pathlib.Path(__file__).with_name("contrast.js").read_text()
NAMED = {"button", "checkbox", "combobox", "image", "link", "region", "searchbox", "slider", "spinbutton", "textbox"}
"""Roles that are nothing to somebody who hears the page, if they have no name."""


def check_width(page: Page) -> None:
    """Nothing is out of sight to the right; a wide table is in a box of its own that scrolls."""
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, page.url
    assert not page.evaluate(TOO_WIDE), page.url


def check_structure(page: Page) -> None:
    """A title, a language, one main part, headings without a gap, and a name for all that is no text."""
    found = list(_accessible(page))
    assert page.title()
    assert page.evaluate("document.documentElement.lang")
    assert [node["role"] for node in found].count("main") == 1
    nameless = [node for node in found if node["role"] in NAMED and not node["name"].strip()]
    assert not nameless, page.url
    levels = [node["level"] for node in found if node["role"] == "heading"]
    assert levels.count(1) == 1, page.url
    assert all(below <= above + 1 for above, below in itertools.pairwise([0, *levels])), (page.url, levels)
    identifiers = page.locator("[id]").evaluate_all("all => all.map((one) => one.id)")
    assert len(set(identifiers)) == len(identifiers), page.url


def check_keyboard(page: Page) -> None:
    """The tab key goes from top to bottom, and where it is can be seen."""
    seen: list[int] = []
    for _ in range(TABS):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused["what"].startswith("<body") or focused["place"] in seen[:1]:  # once around
            break
        assert focused["visible"], focused["what"]
        assert focused["place"] > max(seen, default=-1), focused["what"]
        seen.append(focused["place"])
    assert seen, page.url


def check_contrast(page: Page) -> None:
    measured = page.evaluate(CONTRAST)
    assert measured["texts"]
    assert not measured["found"], page.url


def _accessible(page: Page) -> Iterator[dict[str, Any]]:
    """What Chromium tells a screen reader, in reading order: role, name and properties. What is in an image is not."""
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    by_id = {node["nodeId"]: node for node in tree}
    stack = [tree[0]]
    while stack:
        node = stack.pop()
        role = None if node["ignored"] else node["role"]["value"]
        if role:
            properties = {found["name"]: found["value"].get("value") for found in node.get("properties", [])}
            yield {"role": role, "name": node.get("name", {}).get("value", ""), **properties}
        if role != "image":
            stack += [by_id[child] for child in reversed(node.get("childIds", [])) if child in by_id]
