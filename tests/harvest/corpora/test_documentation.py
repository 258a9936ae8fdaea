"""Docstrings found in a small made-up site-packages, compared with what `inspect` says of the same modules."""

import ast
import importlib.util
import inspect
from collections import Counter
from itertools import pairwise

import pytest

from harvest.config import CorpusSpec
from harvest.corpora import documentation
from harvest.corpora.documents import LeftOut
from harvest.errors import UserError

LONG = "It explains itself at length. " * 10


def write(folder, sources):
    for path, source in sources.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.encode() if isinstance(source, str) else source)
    return folder


def read(monkeypatch, *folders, **spec):
    """All documents, and what was left out."""
    monkeypatch.setattr(documentation, "site_packages", lambda: list(folders))
    left_out = LeftOut()
    found = documentation.documents(CorpusSpec(**{"documentation": "installed", "tokens": 1000, **spec}), left_out)
    return list(found), left_out.counts


NESTED = f'''"""Module. {LONG}"""
class Outer:
    """Outer. {LONG}

        indented
    not
    """
    def method(self):
        """Method. {LONG}"""
        async def local():
            """Local. {LONG}"""
            class Deepest:
                """Deepest. {LONG}"""
    class Inner:
        """Inner. {LONG}"""
if True:
    def guarded():
        """Guarded. {LONG}"""
try:
    pass
except ValueError:
    def fallback():
        """Fallback. {LONG}"""
match 1:
    case 1:
        def matched():
            """Matched. {LONG}"""
def undocumented():
    "{LONG}" + "no docstring but an expression"
def short():
    """Too short."""
'''


def test_finds_every_docstring_however_deep(tmp_path, monkeypatch):
    write(tmp_path, {"alpha/__init__.py": "", "alpha/sub/nested.py": NESTED, "lone.py": f'"""Lone. {LONG}"""'})
    found, left_out = read(monkeypatch, tmp_path)
    by_name = {document.name: document for document in found}
    inside = ["", ".Outer", ".Outer.method", ".Outer.method.local", ".Outer.method.local.Deepest", ".Outer.Inner"]
    inside += [".guarded", ".fallback", ".matched"]
    assert set(by_name) == {"lone", *(f"alpha.sub.nested{name}" for name in inside)}
    assert by_name["lone"].labels == {"package": "lone"}
    assert by_name["alpha.sub.nested.Outer"].labels == {"package": "alpha"}
    assert left_out == {"documents too short": 1}

    spec = importlib.util.spec_from_file_location("nested", tmp_path / "alpha/sub/nested.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert by_name["alpha.sub.nested"].text == inspect.getdoc(module)
    assert by_name["alpha.sub.nested.Outer"].text == inspect.getdoc(module.Outer)
    assert "\n    indented" in by_name["alpha.sub.nested.Outer"].text
    assert by_name["alpha.sub.nested.Outer.Inner"].text == inspect.getdoc(module.Outer.Inner)


def test_minimum_length_counts_the_cleaned_docstring(tmp_path, monkeypatch):
    write(
        tmp_path,
        {"a.py": f'def exact():\n    """\n    {"x" * 200}\n    """\ndef less():\n    """\n    {"y" * 199}\n    """\n'},
    )
    found, left_out = read(monkeypatch, tmp_path)
    assert [document.name for document in found] == ["a.exact"]
    assert left_out == {"documents too short": 1}
    assert len(read(monkeypatch, tmp_path, minimum_characters=199)[0]) == 2


def test_duplicates_are_dropped_once_and_counted(tmp_path, monkeypatch):
    same = f'def f():\n    """Same. {LONG}"""\n'
    write(tmp_path, {"a.py": same, "b.py": same, "c/d.py": same + f'def g():\n    """Other. {LONG}"""\n'})
    monkeypatch.setattr(documentation, "FILES_IN_A_BLOCK", 1)
    found, left_out = read(monkeypatch, tmp_path)
    assert len(found) == 2
    assert len({document.text for document in found}) == 2
    assert left_out == {"documents seen before": 2}


def test_unreadable_sources_are_skipped_and_counted(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            "old.py": "print 'Python 2'",
            "nul.py": b"x = 1\0",
            "bytes.py": b'"""\xff\xfe"""',
            "surrogate.py": f'"""\\ud800 {LONG}"""',
            "latin.py": b'# coding: latin-1\n"""Caf\xe9. ' + LONG.encode() + b'"""',
            "escape.py": f'"""A bad \\escape. {LONG}"""',
        },
    )
    found, left_out = read(monkeypatch, tmp_path)
    assert {document.name for document in found} == {"latin", "escape"}
    assert any("Café" in document.text for document in found)
    assert left_out == {"files that do not parse": 3, "documents that are not Unicode text": 1}


def many_packages():
    return {
        f"package{p}/module{m}.py": "".join(f'def f{i}():\n    """{p} {m} {i}. {LONG}"""\n' for i in range(5))
        for p in range(8)
        for m in range(3)
    }


def test_order_depends_only_on_what_is_installed(tmp_path, monkeypatch):
    sources = many_packages()
    here = write(tmp_path / "here", sources)
    there = write(tmp_path / "far/away", dict(reversed(sources.items())))
    split = {path: source for path, source in sources.items() if path < "package4"}
    pure = write(tmp_path / "lib", split)
    plat = write(tmp_path / "lib64", {path: source for path, source in sources.items() if path not in split})
    first, _ = read(monkeypatch, here)
    assert first == read(monkeypatch, there)[0] == read(monkeypatch, pure, plat)[0]
    assert len(first) == 8 * 3 * 5


def test_order_mixes_packages_and_files(tmp_path, monkeypatch):
    write(tmp_path, many_packages())
    found, _ = read(monkeypatch, tmp_path)
    neighbours = [a.labels == b.labels for a, b in pairwise(found)]
    assert sum(neighbours) < len(neighbours) / 3  # one in eight is expected of a random order
    assert len({document.labels["package"] for document in found[:30]}) == 8


def test_reads_only_as_far_as_asked(tmp_path, monkeypatch):
    write(tmp_path, many_packages())
    monkeypatch.setattr(documentation, "site_packages", lambda: [tmp_path])
    monkeypatch.setattr(documentation, "FILES_IN_A_BLOCK", 2)
    parsed = []
    real = ast.parse
    monkeypatch.setattr(documentation.ast, "parse", lambda source: parsed.append(source) or real(source))
    stream = documentation.documents(CorpusSpec(documentation="installed", tokens=1), LeftOut())
    next(stream)
    assert len(parsed) == 2


def test_only_the_listed_packages(tmp_path, monkeypatch):
    write(tmp_path, many_packages())
    found, _ = read(monkeypatch, tmp_path, documentation=["package3", "package5"])
    assert Counter(document.labels["package"] for document in found) == {"package3": 15, "package5": 15}
    with pytest.raises(UserError, match=r"'packge3' is not installed here.*package3"):
        read(monkeypatch, tmp_path, documentation=["packge3"])


def test_what_is_no_package_is_left_alone(tmp_path, monkeypatch):
    source = f'"""Text. {LONG}"""'
    paths = [
        "kept.py",
        "kept-1.0.dist-info/x.py",
        "__pycache__/x.py",
        "__editable___kept_finder.py",
        "kept.libs/x.py",
        "LICENSE",
    ]
    write(tmp_path, dict.fromkeys(paths, source))
    found, _ = read(monkeypatch, tmp_path)
    assert [document.name for document in found] == ["kept"]


def test_this_environment_has_documentation_of_its_packages():
    stream = documentation.documents(CorpusSpec(documentation=["tqdm"], tokens=1), LeftOut())
    document = next(stream)
    assert document.labels == {"package": "tqdm"}
    assert document.name.startswith("tqdm.")
    assert len(document.text) >= 200
