"""How figures and text read on a page."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

MISSING = "–"


def visible(text: str) -> str:
    """Text with its line breaks, tabs and other control characters as signs, in the order they were written."""
    return text.translate(_SIGNS) or "⟨⟩"


class _Signs(dict[int, int]):
    """What stands for each character, looked up once."""

    def __missing__(self, code: int) -> int:
        # Format characters include those that turn the reading direction of everything after them.
        unseen = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        self[code] = 0x2400 + code if code < 0x20 else ord("·") if unseen else code
        return self[code]


_SIGNS = _Signs({ord("\n"): ord("↵"), ord("\t"): ord("→")})


def share(value: float | None) -> str:
    """A share of 1 as a percentage; small ones keep two digits."""
    if value is None:
        return MISSING
    percent = 100 * value
    return f"{percent:.1f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def decimal(value: float | None) -> str:
    """Four decimals, as explained variance is compared."""
    return MISSING if value is None else f"{value:.4f}"


def number(value: float | None) -> str:
    """Whole and large numbers with separators; others with four digits."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:#.4g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    if count is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested facts, each after the keys that lead to it; a list is one leaf."""
    if isinstance(value, dict):
        return [
            leaf
            for key, inner in value.items()
            for leaf in flat(inner, f"{prefix} · {key}".removeprefix(" · ").replace("_", " "))
        ]
    return [(prefix, value)]


def fact(value: Any) -> str:
    """One fact of a manifest; of a hash, its beginning."""
    if value is None or isinstance(value, bool):
        return {None: MISSING, True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return ", ".join(map(fact, value))
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{40,}", text) else text


def in_form(value: float | None, form: str) -> str:
    """A figure as its definition wants it, `decimal`, `share` or `number`."""
    return str(FILTERS[form](value))


FILTERS: dict[str, Callable[..., Any]] = {
    "visible": visible,
    "share": share,
    "decimal": decimal,
    "number": number,
    "duration": duration,
    "size": size,
    "flat": flat,
    "fact": fact,
    "in_form": in_form,
}
