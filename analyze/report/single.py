"""A report as one file: a page that holds all others with what they need, and shows the one that its hash names."""

import base64
import json
import pathlib

import jinja2

from harvest.errors import UserError
from harvest.files import write_text

HERE = pathlib.Path(__file__).parent
LIMIT = 100 * 10**6
"""Bytes that a browser still opens without trouble."""
TEXTS = {".html", ".css", ".js"}
TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".csv": "text/csv",
    ".gz": "application/gzip",
}


def write_single_file(report: pathlib.Path, output: pathlib.Path, limit: int = LIMIT) -> None:
    """Write the whole folder of a report into `output`, an HTML file that needs nothing else.

    `output#<page>` opens a page, and `output#features/sae.html#123` one in its state. Raises `UserError` where that
    would take more than `limit` bytes.
    """
    files = sorted(path for path in report.rglob("*") if path.is_file() and path != output)
    # Base64 and the packs' characters in UTF-8 take at most so much more.
    if (size := sum(path.stat().st_size for path in files) * 3 // 2) > limit:
        raise UserError(
            f"--single-file: {output}: the report would take {size / 1e6:,.0f} MB, and at most {limit / 1e6:,.0f} MB "
            "go into one file; leave it as a folder"
        )
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)
    page = templates.get_template("single.html").render(
        files=[(path.relative_to(report).as_posix(), _held(path)) for path in files],
        script=(HERE / "static" / "single.js").read_text(encoding="utf-8"),
    )
    write_text(output, page)


def _held(path: pathlib.Path) -> str:
    """A text, or a data URI, as JSON that may stand in a script."""
    data = path.read_bytes()
    if path.suffix in TEXTS:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    else:
        kind = TYPES.get(path.suffix, "application/octet-stream")
        text = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c")
